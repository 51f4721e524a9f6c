/* The tokenizer oracle: llama.cpp's token ids of many texts from one load of a vocabulary.
 *
 *   llama_tokenize VOCABULARY.gguf ADD_SPECIAL PARSE_SPECIAL < texts > ids
 *
 * texts: for each a 32-bit little-endian length and that many bytes. ids: a line for each, separated by
 * spaces.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char* text, void* data) {
    (void)level, (void)text, (void)data;
}

int main(int argc, char** argv) {
    if (argc != 4) {
        return 2;
    }
    llama_log_set(quiet, NULL);
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    struct llama_model* model = llama_model_load_from_file(argv[1], params);
    if (model == NULL) {
        fprintf(stderr, "cannot load %s\n", argv[1]);
        return 1;
    }
    const struct llama_vocab* vocab = llama_model_get_vocab(model);
    uint32_t length;
    while (fread(&length, sizeof length, 1, stdin) == 1) {
        char* text = malloc(length + 1);
        int32_t capacity = (int32_t)length * 4 + 16;
        llama_token* ids = malloc(sizeof *ids * (size_t)capacity);
        if (fread(text, 1, length, stdin) != length) {
            return 1;
        }
        int32_t count =
            llama_tokenize(vocab, text, (int32_t)length, ids, capacity, atoi(argv[2]), atoi(argv[3]));
        for (int32_t i = 0; i < count; ++i) {
            printf(i ? " %d" : "%d", ids[i]);
        }
        putchar('\n');
        free(text);
        free(ids);
    }
    return 0;
}
