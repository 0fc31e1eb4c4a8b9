// Exact nearest-code search on the CPU: the method, and what its translation units share.
//
// For a row z and codes e_k all three metrics ask for the largest score
//     s_k = z . e_k - h_k        h_k = |e_k|^2 / 2 (euclidean) or 0 (dot; cosine, with e_k / |e_k| for e_k)
// The search has two phases:
//   1. All N x K scores are computed in float32 at the speed of a matrix product, but only the largest score of every
//      *cell*, a run of up to 16 consecutive codes, is kept. That costs one max per score beside its products.
//   2. A bound on the rounding errors says which cells can hold the nearest code, nearly always one. Those are searched
//      again in float64 from the original numbers, distances in difference form, ties to the lowest index.
// So the answer is that of a float64 brute force whatever the data: ties, tiny distances and large offsets cost time only.
#pragma once
#include <cstdint>

enum class Metric : int { euclidean = 0, cosine = 1, dot = 2 };

// Packed layout. The codes are cut into blocks of lanes * cell. Vector v of a block holds one code of every cell: in lane
// l the code start + l * cell + v. A panel is `panel_vectors` vectors side by side: a vector of -h each, then for every
// dimension a vector of values each. The panels follow each other. Places without a code have -h = -infinity.
constexpr int panel_vectors = 4;

// Codes in a cell of the given block: fewer in the last block where that saves whole panels.
static inline int cell_of_block(int64_t K, int lanes, int cell, int64_t block) {
    const int64_t left = K - block * lanes * cell, panel_codes = panel_vectors * lanes;
    const int64_t needed = (left + panel_codes - 1) / panel_codes * panel_vectors;
    return needed < cell ? int(needed) : cell;
}

struct Norms {
    double norm;
    double half_error;  // norm of what rounding to bfloat16 loses
};

struct PackedView {
    const float* codes;   // (K, D) the original numbers, for phase 2
    const float* panels;  // the packed ones, for phase 1
    const float* half_panels;  // packed as pairs of bfloat16 in the place of floats; null where that is not to be used
    const float* mean;    // (D) subtracted from the codes before packing: small numbers have small rounding errors
    const float* z_mean;  // (D) to subtract from z: the same for euclidean, zeros for the others, where it changes no order
    int64_t K, D;
    int cell;             // codes in a cell, a multiple of panel_vectors
    Norms largest;        // of the packed codes, for the bound
    Metric metric;
};

// What one compilation of kernel.cpp offers.
struct Kernel {
    const char* name;
    int lanes;         // floats in a vector
    int64_t max_rows;  // rows that one call of search takes
    int64_t min_half_dim;  // half_panels are used from this dimension on
    int64_t (*workspace)(const PackedView&);  // floats that one call of search needs, 64-byte aligned
    Norms (*pack)(const PackedView&, int64_t block, float* panels, float* half_panels);
    void (*search)(const PackedView&, const float* z, int64_t rows, int64_t offset, double* cost, int64_t* index,
                   float* workspace);
};

extern const Kernel kernel_plain;
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;
extern const Kernel kernel_avx512bf16;
