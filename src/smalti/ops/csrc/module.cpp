// The Python module smalti.ops._native: arrays, memory, threads, choice of the kernel. search.h tells the method.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>
#ifndef _OPENMP
#include <thread>
#endif

#ifdef SMALTI_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "search.h"

namespace nb = nanobind;
template <typename T, int dims> using Array = nb::ndarray<T, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;

namespace {

#ifdef SMALTI_AMX
// Whether the processor has AMX for bfloat16 and Linux lets this process use it, which it must ask for once.
bool may_use_amx() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return allowed && __builtin_cpu_supports("avx512f");
}
#endif

// The kernels that this machine can run, fastest first.
std::vector<const Kernel*> usable_kernels() {
    std::vector<const Kernel*> kernels;
#ifdef SMALTI_X86
#ifdef SMALTI_AMX
    if (may_use_amx()) kernels.push_back(&kernel_amx);
#endif
#ifdef SMALTI_AVX512BF16
    if (__builtin_cpu_supports("avx512bf16")) kernels.push_back(&kernel_avx512bf16);
#endif
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) kernels.push_back(&kernel_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kernels.push_back(&kernel_avx2);
#endif
    kernels.push_back(&kernel_plain);
    return kernels;
}

const Kernel& find_kernel(const std::string& name) {
    for (const Kernel* kernel : usable_kernels())
        if (name.empty() || name == kernel->name) return *kernel;
    throw std::invalid_argument("kernel must be one that kernels() lists, not '" + name + "'");
}

// Calls work(worker) once on each of `workers` threads. OpenMP when there is: torch uses it too, so that both share one
// pool and none of torch's idle threads spins in the way of ours.
template <typename Work> void on_threads(int workers, const Work& work) {
#ifdef _OPENMP
    std::atomic<int> next = 0;
    #pragma omp parallel num_threads(workers)
    work(next++);
#else
    std::vector<std::thread> threads;
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back([&work, worker] { work(worker); });
    work(0);
    for (std::thread& thread : threads) thread.join();
#endif
}

// Floats from an address that is a multiple of 64. std::aligned_alloc asks the heap for more than it keeps, so that what
// one codebook leaves is too small for the next of its size; asking for the slack ourselves lets it be used again.
class Floats {
public:
    Floats() = default;
    explicit Floats(int64_t count) : memory_(new float[count + 15]) {}  // not set to zero
    float* get() const {
        return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t(63));
    }

private:
    std::unique_ptr<float[]> memory_;
};

// A codebook laid out for phase 1. It never changes; the codes themselves stay with the caller, who passes them again.
class PackedCodebook {
public:
    PackedCodebook(Array<const float, 2> codebook, int metric, int threads, const std::string& kernel)
        : kernel_(find_kernel(kernel)) {
        if (codebook.shape(0) == 0 || codebook.shape(1) == 0) throw std::invalid_argument("codebook must not be empty");
        if (metric < 0 || metric > 2) throw std::invalid_argument("metric must be 0, 1 or 2");
        book_.codes = codebook.data();
        book_.K = codebook.shape(0);
        book_.D = codebook.shape(1);
        book_.cell = book_.K < 8192 ? 8 : 16;  // small cells are searched again sooner, of large ones there are fewer
        book_.metric = Metric(metric);
        nb::gil_scoped_release release;
        pack(threads);
        book_.codes = nullptr;
    }

    int64_t nbytes() const { return size_ * sizeof(float); }

    // Lowers cost and index (both N) where a code of this book, which starts at index `offset`, is nearer.
    void search(Array<const float, 2> codebook, Array<const float, 2> z, Array<double, 1> cost, Array<int64_t, 1> index,
                int64_t offset, int threads) const {
        const int64_t N = z.shape(0), D = book_.D;
        if (int64_t(codebook.shape(0)) != book_.K || int64_t(codebook.shape(1)) != D || int64_t(z.shape(1)) != D ||
            int64_t(cost.shape(0)) != N || int64_t(index.shape(0)) != N)
            throw std::invalid_argument("the shapes of codebook, z, cost and index do not agree");
        PackedView shared = book_;
        shared.codes = codebook.data();
        nb::gil_scoped_release release;
        // Four tasks a thread even out the load; multiples of 12 rows fill the register tiles of every kernel.
        const int64_t rows = std::clamp<int64_t>((N / (4 * std::max(threads, 1)) + 11) / 12 * 12, 12, kernel_.max_rows);
        // Workspaces lie 256 KB apart (of address space): one core's prefetcher runs on past the end of its own and
        // would take the next one's cache lines from the other core all the time.
        const int64_t tasks = (N + rows - 1) / rows, floats = (kernel_.workspace(shared) + 15) / 16 * 16 + 65536;
        const int workers = int(std::clamp<int64_t>(threads, 1, std::max<int64_t>(tasks, 1)));
        const Floats workspaces(workers * floats);
        alignas(64) std::atomic<int64_t> next = 0;
        on_threads(workers, [&](int worker) {
            const PackedView book = shared;  // of its own: no cache line that another thread writes to
            for (int64_t task = next++; task < tasks; task = next++) {
                const int64_t first = task * rows;
                kernel_.search(book, z.data() + first * D, std::min(rows, N - first), offset, cost.data() + first,
                               index.data() + first, workspaces.get() + worker * floats);
            }
        });
    }

private:
    void pack(int threads) {
        const int64_t K = book_.K, D = book_.D, panel_codes = kernel_.lanes * panel_vectors;
        const int64_t block_codes = kernel_.lanes * book_.cell, blocks = (K + block_codes - 1) / block_codes;
        const int64_t places = (K + panel_codes - 1) / panel_codes * panel_codes;
        const bool half = D >= kernel_.min_half_dim && K >= 128;
        size_ = places * (D + 1 + (half ? kernel_.steps(D, true) + 1 : 0));
        panels_ = Floats(size_);
        float* half_panels = half ? panels_.get() + places * (D + 1) : nullptr;
        mean_ = mean_of_sample();
        z_mean_ = book_.metric == Metric::euclidean ? mean_ : std::vector<float>(D);
        book_.panels = panels_.get();
        book_.half_panels = half_panels;
        book_.mean = mean_.data();
        book_.z_mean = z_mean_.data();
        const int workers = int(std::clamp<int64_t>(K * D / 65536, 1, std::max(threads, 1)));
        std::vector<Norms> largest(workers);
        std::atomic<int64_t> next = 0;
        on_threads(workers, [&](int worker) {
            for (int64_t block = next++; block < blocks; block = next++) {
                const Norms norms = kernel_.pack(book_, block, panels_.get(), half_panels);
                largest[worker].norm = std::max(largest[worker].norm, norms.norm);
                largest[worker].half_error = std::max(largest[worker].half_error, norms.half_error);
            }
        });
        for (const Norms& norms : largest) {
            book_.largest.norm = std::max(book_.largest.norm, norms.norm);
            book_.largest.half_error = std::max(book_.largest.half_error, norms.half_error);
        }
    }

    // Any centre gives right answers; one near the mean of the codes keeps the rounding bound, and so phase 2, small.
    std::vector<float> mean_of_sample() const {
        const int64_t K = book_.K, D = book_.D, step = (K + 255) / 256;
        std::vector<double> total(D);
        int64_t count = 0;
        for (int64_t k = 0; k < K; k += step) {
            const float* code = book_.codes + k * D;
            double square = 0;
            for (int64_t d = 0; d < D; ++d) square += double(code[d]) * code[d];
            if (!std::isfinite(square)) continue;
            const double scale = book_.metric == Metric::cosine ? 1 / std::max(std::sqrt(square), 1e-12) : 1;
            for (int64_t d = 0; d < D; ++d) total[d] += code[d] * scale;
            ++count;
        }
        std::vector<float> mean(D);
        for (int64_t d = 0; d < D && count > 0; ++d) mean[d] = float(total[d] / count);
        return mean;
    }

    const Kernel& kernel_;
    PackedView book_{};
    Floats panels_;
    std::vector<float> mean_, z_mean_;
    int64_t size_ = 0;
};

// A 64-bit fingerprint of the numbers, at the speed of memory: four chains of multiplications, as in wyhash.
uint64_t fingerprint(Array<const float, 2> codebook) {
    const auto mix = [](uint64_t a, uint64_t b) {
        const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
        return uint64_t(product) ^ uint64_t(product >> 64);
    };
    const uint64_t keys[4] = {0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0xd6e8feb86659fd93};
    uint64_t state[4] = {1, 2, 3, 4}, word[8];
    const auto absorb = [&](const void* bytes, size_t count) {
        std::memcpy(word, bytes, count);
        for (int i = 0; i < 4; ++i) state[i] = mix(state[i] ^ word[2 * i], keys[i] ^ word[2 * i + 1]);
    };
    const char* bytes = reinterpret_cast<const char*>(codebook.data());
    const size_t count = codebook.size() * sizeof(float), whole = count / sizeof word * sizeof word;
    nb::gil_scoped_release release;
    for (size_t i = 0; i < whole; i += sizeof word) absorb(bytes + i, sizeof word);
    std::memset(word, 0, sizeof word);
    absorb(bytes + whole, count - whole);
    return mix(mix(state[0] ^ count, state[1] ^ keys[1]) ^ keys[2], mix(state[2] ^ keys[2], state[3] ^ keys[3]));
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // a codebook that is still alive at exit is no leak
    nb::class_<PackedCodebook>(m, "PackedCodebook")
        .def(nb::init<Array<const float, 2>, int, int, const std::string&>(), nb::arg("codebook"), nb::arg("metric"),
             nb::arg("threads") = 1, nb::arg("kernel") = "")
        .def("search", &PackedCodebook::search, nb::arg("codebook"), nb::arg("z"), nb::arg("cost"), nb::arg("index"),
             nb::arg("offset") = 0, nb::arg("threads") = 1)
        .def_prop_ro("nbytes", &PackedCodebook::nbytes);
    m.def("fingerprint", &fingerprint, nb::arg("codebook"));
    m.def("kernels", [] {
        std::vector<std::string> names;
        for (const Kernel* kernel : usable_kernels()) names.push_back(kernel->name);
        return names;
    });
}
