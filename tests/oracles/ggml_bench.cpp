// Speed of ggml's own encoders and matrix products, as JSON lines with the keys of `lapidary bench --kernels --json`.
//
//   ggml_bench encode|matmul FORMAT THREADS SECONDS
//
// encode: ggml_quantize_chunk over rows of 4096, without and with an importance matrix, rows shared among std::threads as
// llama-quantize does. matmul: ggml_mul_mat on the CPU backend in every buffer type that takes the weights (plain, and
// repacked where the build has it); the best one is printed. Built and run by llama_cpp_bench.sh.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Twelve uniform numbers less six, as our bench has it; four columns six times larger.
static std::vector<float> weights(size_t rows, size_t cols) {
    unsigned long long state = 7;
    auto next = [&] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    };
    std::vector<float> table(4096);
    for (auto & value : table) {
        double sum = -6;
        for (int i = 0; i < 12; i++) sum += (next() >> 11) / 9007199254740992.0;
        value = float(sum) * 0.02f;
    }
    size_t outliers[4];
    for (auto & column : outliers) column = next() % cols;
    std::vector<float> values(rows * cols);
    for (auto & value : values) value = table[next() % table.size()];
    for (size_t row = 0; row < rows; row++)
        for (size_t column : outliers) values[row * cols + column] *= 6;
    return values;
}

template <class Work> static std::vector<double> times(double seconds, Work work) {
    work();
    std::vector<double> samples;
    double start = now();
    while (samples.size() < 3 || (now() - start < seconds && samples.size() < 2000)) {
        double begin = now();
        work();
        samples.push_back(now() - begin);
    }
    std::sort(samples.begin(), samples.end());
    return samples;
}

static void print(const char * kernel, const char * format, size_t rows, size_t cols, int batch, int threads,
                  const std::vector<double> & samples, const char * buffer) {
    double median = samples[samples.size() / 2];
    printf("{\"kernel\": \"%s\", \"format\": \"%s\", \"rows\": %zu, \"cols\": %zu, \"batch\": %s, \"threads\": %d, "
           "\"repetitions\": %zu, \"min_secs\": %.9f, \"median_secs\": %.9f, \"weights_per_second\": %.0f, \"buffer\": \"%s\"}\n",
           kernel, format, rows, cols, batch ? std::to_string(batch).c_str() : "null", threads, samples.size(), samples[0],
           median, rows * cols / median, buffer);
    fflush(stdout);
}

static void encode(ggml_type type, const char * format, int threads, double seconds) {
    const size_t rows = 128, cols = 4096;
    auto values = weights(rows, cols);
    std::vector<float> importance(cols);
    for (size_t column = 0; column < cols; column++) importance[column] = 0.1f + column * 37 % 101;
    std::vector<char> out(ggml_row_size(type, cols) * rows);
    for (bool weighted : {false, true}) {
        if (!weighted && ggml_quantize_requires_imatrix(type)) continue;
        auto work = [&] {
            std::vector<std::thread> workers;
            size_t step = (rows + threads - 1) / threads;
            for (size_t first = 0; first < rows; first += step) {
                workers.emplace_back([&, first] {
                    size_t count = std::min(step, rows - first);
                    ggml_quantize_chunk(type, values.data(), out.data(), first * cols, count, cols,
                                        weighted ? importance.data() : nullptr);
                });
            }
            for (auto & worker : workers) worker.join();
        };
        print(weighted ? "encode_imatrix" : "encode", format, rows, cols, 0, threads, times(seconds, work), "");
    }
}

static void matmul(ggml_type type, const char * format, int threads, double seconds) {
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads);
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    auto get_extra = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    std::vector<ggml_backend_buffer_type_t> kinds = {ggml_backend_cpu_buffer_type()};
    if (get_extra)
        for (auto extra = get_extra(device); extra && *extra; ++extra) kinds.push_back(*extra);
    const size_t shapes[2][2] = {{2048, 4096}, {4096, 11008}};
    for (auto & shape : shapes) {
        size_t rows = shape[0], cols = shape[1];
        if (cols % ggml_blck_size(type)) continue;
        auto values = weights(rows, cols);
        for (int batch : {1, 8, 128, 512}) {
            std::vector<double> best;
            std::string name;
            for (auto kind : kinds) {
                ggml_init_params params = {ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true};
                ggml_context * fixed = ggml_init(params);
                ggml_context * moving = ggml_init(params);
                ggml_tensor * w = ggml_new_tensor_2d(fixed, type, cols, rows);
                ggml_tensor * x = ggml_new_tensor_2d(moving, GGML_TYPE_F32, cols, batch);
                ggml_tensor * y = ggml_mul_mat(moving, w, x);
                ggml_backend_buffer_t held = ggml_backend_alloc_ctx_tensors_from_buft(fixed, kind);
                bool takes = held && (kind == kinds[0] || (w->extra && ggml_backend_supports_op(backend, y)));
                if (takes) {
                    ggml_backend_buffer_t rest = ggml_backend_alloc_ctx_tensors(moving, backend);
                    std::vector<char> packed(ggml_nbytes(w));
                    ggml_quantize_chunk(type, values.data(), packed.data(), 0, rows, cols, nullptr);
                    ggml_backend_tensor_set(w, packed.data(), 0, packed.size());
                    ggml_backend_tensor_set(x, values.data(), 0, size_t(batch) * cols * 4);
                    ggml_cgraph * graph = ggml_new_graph(moving);
                    ggml_build_forward_expand(graph, y);
                    auto samples = times(seconds, [&] { ggml_backend_graph_compute(backend, graph); });
                    if (best.empty() || samples[0] < best[0]) {
                        best = samples;
                        name = ggml_backend_buft_name(kind);
                    }
                    ggml_backend_buffer_free(rest);
                }
                if (held) ggml_backend_buffer_free(held);
                ggml_free(fixed);
                ggml_free(moving);
            }
            print("matmul", format, rows, cols, batch, threads, best, name.c_str());
        }
    }
}

int main(int count, char ** arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: ggml_bench encode|matmul FORMAT THREADS SECONDS\n");
        return 2;
    }
    std::string task = arguments[1], format = arguments[2];
    int threads = atoi(arguments[3]);
    double seconds = atof(arguments[4]);
    for (int id = 0; id < GGML_TYPE_COUNT; id++) {
        ggml_type type = ggml_type(id);
        const char * name = ggml_type_name(type);
        if (!name || !ggml_blck_size(type)) continue;
        std::string lower = name;
        std::transform(lower.begin(), lower.end(), lower.begin(), ::tolower);
        if (lower != format) continue;
        if (task == "encode") {
            encode(type, format.c_str(), threads, seconds);
        } else {
            matmul(type, format.c_str(), threads, seconds);
        }
        return 0;
    }
    fprintf(stderr, "ggml has no type %s\n", format.c_str());
    return 1;
}
