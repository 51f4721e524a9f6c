// Timelines, KV pools, programs and the lane.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "src/allocations.h"
#include "src/lane.h"
#include "src/packer.h"
#include "src/program.h"
#include "src/workspace.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Buffer2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Buffer3 = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using ByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BatchData = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Vector vector_of(const Floats& values) { return Vector(values.data(), values.data() + values.shape(0)); }

KvType kv_type(const std::string& name) {
    if (name == "f32") return KvType::kF32;
    if (name == "f16") return KvType::kF16;
    if (name == "q8_0") return KvType::kQ8_0;
    throw std::invalid_argument("unknown KV dtype '" + name + "': expected f32, f16 or q8_0");
}

// Deleted by the interpreter, which must not be held while the lane's last program ends.
struct PyLane : Lane {
    using Lane::Lane;
    ~PyLane() {
        nb::gil_scoped_release release;
        close();
    }
};

using File = std::tuple<std::string, int, int64_t>;
using MatrixSource = std::tuple<int, int64_t, int64_t, ByteArray, std::optional<File>>;

std::vector<std::shared_ptr<PackedMatrix>> pack_matrices(PyLane& lane, const std::string& isa,
                                                         const std::vector<MatrixSource>& sources) {
    const Kernels& kernels = choose_kernels(isa.c_str());
    std::vector<std::shared_ptr<PackedMatrix>> matrices;
    std::vector<FileRange> files;
    files.reserve(sources.size());  // tasks point into it
    std::vector<PackTask> tasks;
    for (const auto& [type, rows, columns, data, file] : sources) {
        const auto t = static_cast<WeightType>(type);
        check_source(t, rows, columns, data.size());
        matrices.push_back(std::make_shared<PackedMatrix>(make_packed(t, rows, columns)));
        if (file) files.push_back(std::make_from_tuple<FileRange>(*file));
        tasks.push_back({matrices.back().get(), data.data(), file ? &files.back() : nullptr});
    }
    nb::gil_scoped_release release;
    pack(lane, kernels, tasks);
    return matrices;
}

void bind_timeline(nb::module_& m) {
    nb::exception<StepFailed>(m, "StepFailed", PyExc_RuntimeError);
    nb::class_<Timeline>(m, "Timeline",
                         "A counter that only grows; host and devices wait for values and signal them.")
        .def(nb::new_([] { return std::make_shared<Timeline>(); }))
        .def_prop_ro("value", &Timeline::value)
        .def("signal", &Timeline::signal, "value"_a)
        .def("fail", &Timeline::fail, "value"_a, "reason"_a)
        .def("wait", &Timeline::wait, "value"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("begin", &Timeline::begin, "The run that will signal next begins now.")
        .def("run", &Timeline::run, "value"_a,
             "(begin, end) of the run that signalled `value`, one of the last eight, on the clock of "
             "time.perf_counter.");
}

void bind_kv_pool(nb::module_& m) {
    nb::class_<KvPool>(m, "KvPool")
        .def(nb::new_([](int group, std::vector<int> layers, int kv_heads, int head_dim,
                         const std::string& dtype, int pages) {
                 return std::make_shared<KvPool>(group, std::move(layers), kv_heads, head_dim, kv_type(dtype),
                                                 pages);
             }),
             "group"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "dtype"_a, "pages"_a)
        .def_prop_ro("bytes", &KvPool::bytes)
        .def("copy_page", &KvPool::copy_page, "source"_a, "target"_a);
}

void bind_parts(nb::module_& m) {
    nb::class_<Norm>(m, "Norm", "RMS norm; `weight` has the offset added. Norm() means: none.")
        .def(nb::init<>())
        .def(
            "__init__",
            [](Norm* self, const Floats& weight, float eps) { new (self) Norm{vector_of(weight), eps}; },
            "weight"_a, "eps"_a);
    nb::class_<Rope>(m, "Rope", "Rotation by inverse frequencies; Rope() means: none.")
        .def(nb::init<>())
        .def(
            "__init__",
            [](Rope* self, const Floats& inverse_frequencies, bool interleaved) {
                new (self) Rope{vector_of(inverse_frequencies), interleaved};
            },
            "inverse_frequencies"_a, "interleaved"_a);
}

void bind_program(nb::module_& m) {
    nb::class_<Program>(m, "Program")
        .def(nb::new_([](const std::string& isa, int threads, int rows, Buffer2 hidden, Buffer2 logits,
                         Buffer3 partials, Slots slots) {
                 const StepBuffers buffers{hidden.data(),
                                           logits.data(),
                                           partials.data(),
                                           slots.data(),
                                           static_cast<int64_t>(hidden.shape(0)),
                                           static_cast<int64_t>(logits.shape(0)),
                                           static_cast<int64_t>(partials.shape(0)),
                                           static_cast<int64_t>(slots.shape(0)),
                                           static_cast<int64_t>(hidden.shape(1))};
                 return std::make_shared<Program>(choose_kernels(isa.c_str()), threads, rows, buffers);
             }),
             "isa"_a, "threads"_a, "rows"_a, "hidden"_a, "logits"_a, "partials"_a, "slots"_a,
             "The buffers are not copied and must outlive the program.")
        .def(
            "add_embed",
            [](Program& self, Matrix embedding, float scale) {
                self.add(EmbedBlock{std::move(embedding), scale});
            },
            "embedding"_a, "scale"_a)
        .def(
            "add_attention",
            [](Program& self, Matrix q, Matrix k, Matrix v, Matrix o, const Floats& q_bias,
               const Floats& k_bias, const Floats& v_bias, const Floats& o_bias, const Norm& norm,
               const Norm& q_norm, const Norm& k_norm, const Norm& post_norm, const Rope& rope,
               std::shared_ptr<KvPool> pool, int layer, int heads, int kv_heads, int head_dim, int window,
               float scale, float softcap, int partial) {
                const int index = pool->index_of(layer);
                if (index < 0) throw std::invalid_argument("attention: the pool does not hold its layer");
                self.add(AttentionBlock{std::move(q),
                                        std::move(k),
                                        std::move(v),
                                        std::move(o),
                                        vector_of(q_bias),
                                        vector_of(k_bias),
                                        vector_of(v_bias),
                                        vector_of(o_bias),
                                        norm,
                                        q_norm,
                                        k_norm,
                                        post_norm,
                                        rope,
                                        std::move(pool),
                                        index,
                                        heads,
                                        kv_heads,
                                        head_dim,
                                        window,
                                        scale,
                                        softcap,
                                        partial});
            },
            nb::kw_only(), "q"_a, "k"_a, "v"_a, "o"_a, "q_bias"_a, "k_bias"_a, "v_bias"_a, "o_bias"_a,
            "norm"_a, "q_norm"_a, "k_norm"_a, "post_norm"_a, "rope"_a, "pool"_a, "layer"_a, "heads"_a,
            "kv_heads"_a, "head_dim"_a, "window"_a, "scale"_a, "softcap"_a, "partial"_a)
        .def(
            "add_ffn",
            [](Program& self, Matrix gate, Matrix up, Matrix down, const Norm& norm, const Norm& post_norm,
               int activation, int partial) {
                self.add(FfnBlock{std::move(gate), std::move(up), std::move(down), norm, post_norm,
                                  static_cast<Activation>(activation), partial});
            },
            nb::kw_only(), "gate"_a, "up"_a, "down"_a, "norm"_a, "post_norm"_a, "activation"_a, "partial"_a)
        .def(
            "add_combine",
            [](Program& self, int slices, const Norm& post_norm, const Floats& bias) {
                self.add(CombineBlock{slices, post_norm, vector_of(bias)});
            },
            nb::kw_only(), "slices"_a, "post_norm"_a, "bias"_a)
        .def(
            "add_head",
            [](Program& self, Matrix output, const Norm& norm, float softcap) {
                self.add(HeadBlock{std::move(output), norm, softcap});
            },
            nb::kw_only(), "output"_a, "norm"_a, "softcap"_a)
        .def(
            "seal",
            [](Program& self, PyLane& lane) {
                const std::shared_ptr<Scratch> scratch = lane.scratch();
                const auto bytes = static_cast<size_t>(self.workspace_bytes());
                self.seal(scratch);
                nb::gil_scoped_release release;
                lane.run([&](ThreadPool&) { scratch->reserve(bytes); });
            },
            "lane"_a, "The lane's scratch grows to what the program needs.")
        .def_prop_ro("rows", &Program::rows)
        .def_prop_ro("workspace_bytes", &Program::workspace_bytes);
}

void bind_workspace(nb::module_& m) {
    nb::class_<WorkspaceNeed>(m, "WorkspaceNeed",
                              "What a program of these blocks will need, before it is linked.")
        .def(nb::init<>())
        .def("attention", &WorkspaceNeed::attention, "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a)
        .def("ffn", &WorkspaceNeed::ffn, "hidden"_a, "columns"_a)
        .def("combine", &WorkspaceNeed::combine, "hidden"_a)
        .def("head", &WorkspaceNeed::head, "hidden"_a)
        .def("ropes", &WorkspaceNeed::ropes, "tables"_a, "half"_a)
        .def("bytes", &WorkspaceNeed::bytes, "rows"_a, "operands"_a, "threads"_a);
}

void bind_lane(nb::module_& m) {
    nb::class_<PyLane>(m, "Lane",
                       "An in-order queue with threads of its own; deleting it finishes what is queued.")
        .def(nb::init<int>(), "threads"_a)
        .def_prop_ro("threads", &PyLane::threads)
        .def_prop_ro("scratch_bytes", [](const PyLane& self) { return self.scratch()->bytes(); })
        .def("close", &PyLane::close, nb::call_guard<nb::gil_scoped_release>())
        .def("pack", &pack_matrices, "isa"_a, "matrices"_a,
             "Packs matrices, each (GGUF type, rows, columns, bytes uint8 [n], file), on the lane's threads; "
             "returns PackedMatrix objects in that order. file: None, or (path, descriptor, offset) from "
             "where "
             "the bytes are read instead. StepFailed where that fails.")
        .def(
            "submit",
            [](PyLane& self, std::shared_ptr<Program> program, const BatchData& batch,
               std::vector<std::pair<std::shared_ptr<Timeline>, uint64_t>> wait,
               std::shared_ptr<Timeline> signal, uint64_t value) {
                auto work = [program = std::move(program), data = batch.data(), size = batch.shape(0)](
                                ThreadPool& pool) { program->run(pool, BatchView(data, size)); };
                Command command{std::move(work), {}, {std::move(signal), value}};
                for (auto& [timeline, at] : wait) command.wait.push_back({std::move(timeline), at});
                self.submit(std::move(command));
            },
            "program"_a, "batch"_a, "wait"_a, "signal"_a.none(), "value"_a);
}

}  // namespace

void bind_cpu(nb::module_& m) {
    bind_timeline(m);
    bind_kv_pool(m);
    bind_parts(m);
    bind_program(m);
    bind_workspace(m);
    bind_lane(m);
    m.attr("PAGE_SIZE") = kPageSize;
    m.def("allocations", &allocations,
          "How often this module has allocated 4 KiB or more since it was loaded, over all threads.");
    m.def(
        "choose_isa", [](const std::string& name) { return std::string(choose_kernels(name.c_str()).name); },
        "name"_a,
        "The kernels of this name, or the fastest this CPU runs for ''; ValueError where it runs none.");
}

}  // namespace tandem
