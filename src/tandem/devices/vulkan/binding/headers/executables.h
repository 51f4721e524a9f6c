// VK_KHR_pipeline_executable_properties: what tools/rdna_gate.py asks a compiler.
typedef struct { int32_t sType; void* pNext; VkBool32 pipelineExecutableInfo; } ExecutableFeatures;
typedef struct { int32_t sType; void* pNext; VkPipeline pipeline; } PipelineInfo;
typedef struct {
    int32_t sType; void* pNext; VkFlags stages; char name[256]; char description[256]; uint32_t subgroupSize;
} ExecutableProperties;
typedef struct { int32_t sType; void* pNext; VkPipeline pipeline; uint32_t executableIndex; } ExecutableInfo;
typedef struct {
    int32_t sType; void* pNext; char name[256]; char description[256]; int32_t format;
    union { uint64_t u64; double f64; };
} ExecutableStatistic;
typedef struct {
    int32_t sType; void* pNext; char name[256]; char description[256]; VkBool32 isText; size_t dataSize; void* pData;
} ExecutableRepresentation;
typedef VkResult (*GetStatistics)(VkDevice, const ExecutableInfo*, uint32_t*, ExecutableStatistic*);
typedef VkResult (*GetRepresentations)(VkDevice, const ExecutableInfo*, uint32_t*, ExecutableRepresentation*);
