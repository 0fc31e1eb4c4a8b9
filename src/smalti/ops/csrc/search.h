// Exact nearest-code search on the CPU: the method, and what its files share.
//
// For a row z and codes e_k all three metrics ask for the largest score
//     s_k = z . e_k - h_k        h_k = |e_k|^2 / 2 (euclidean) or 0 (dot; cosine, with e_k / |e_k| for e_k)
// The search has two phases:
//   1. All N x K scores are computed roughly, at the speed of a matrix product: in float32, or in bfloat16 where the
//      processor multiplies that two (AVX-512) to sixteen times (AMX) as fast. Kept is only the largest score of every
//      *cell*, a run of up to 16 consecutive codes, which costs one max per score beside its products.
//   2. A bound on the errors of phase 1 says which cells can hold the nearest code, mostly one. Those are searched
//      again in float64 from the original numbers, distances in difference form, ties to the lowest index.
// So the answer is that of a float64 brute force whatever the data; ties, tiny distances and offsets cost time only.
//
// kernel.cpp with packing.h, exact.h and amx.h is the search, compiled once per instruction set; module.cpp is the rest.
#pragma once
#include <cstdint>

enum class Metric : int { euclidean = 0, cosine = 1, dot = 2 };

// Packed layout. The codes are cut into blocks of lanes * cell. Vector v of a block holds one code of every cell: in
// lane l the code start + l * cell + v. A panel is `panel_vectors` vectors side by side: a vector of -h each, then for
// every step a vector each of one dimension in float32, or of two in bfloat16. Places without a code have h = infinity.
constexpr int panel_vectors = 4;

// Codes in a cell of the given block: fewer in the last block where that saves whole panels.
static inline int cell_of_block(int64_t K, int lanes, int cell, int64_t block) {
    const int64_t left = K - block * lanes * cell, panel_codes = panel_vectors * lanes;
    const int64_t needed = (left + panel_codes - 1) / panel_codes * panel_vectors;
    return needed < cell ? int(needed) : cell;
}

struct Norms {
    double norm;
    double half_error;  // norm of what rounding to bfloat16 takes away
};

struct PackedView {
    const float* codes;        // (K, D) the original numbers, for phase 2
    const float* panels;       // packed for phase 1, float32
    const float* half_panels;  // packed for phase 1, pairs of bfloat16 in the place of floats; null: not used
    const float* mean;         // (D) subtracted from the codes before packing: small numbers have small errors
    const float* z_mean;       // (D) to subtract from z: the same for euclidean, zeros for the others
    int64_t K, D;
    int cell;                  // codes in a cell, a multiple of panel_vectors
    Norms largest;             // of the packed codes
    Metric metric;
};

// What one compilation of kernel.cpp offers.
struct Kernel {
    const char* name;
    int lanes;             // floats in a vector
    int64_t max_rows;      // rows that one call of search takes
    int64_t min_half_dim;  // half_panels pay from this dimension on
    int64_t (*steps)(int64_t D, bool half);   // vectors of a panel behind the first, per code vector
    int64_t (*workspace)(const PackedView&);  // floats that one call of search needs, 64-byte aligned
    Norms (*pack)(const PackedView&, int64_t block, float* panels, float* half_panels);
    void (*search)(const PackedView&, const float* z, int64_t rows, int64_t offset, double* cost, int64_t* index,
                   float* workspace);
};

extern const Kernel kernel_plain;
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;
extern const Kernel kernel_avx512bf16;
extern const Kernel kernel_amx;
