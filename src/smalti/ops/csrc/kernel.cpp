// The search itself (search.h tells the method), written once with the vector types of GCC and Clang. CMake compiles
// this file once per instruction set, which SMALTI_ISA names. Nothing here has external linkage but the table at the
// end, and the standard library stays out: of an inline function that several files contain the linker keeps one copy,
// and an AVX-512 copy would crash on other machines.
#include "search.h"
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, R = 6, C = 4;  // lanes, rows and vectors of codes in a register tile: 24 of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8, R = 3, C = 4;   // 12 of 16
#elif defined(__aarch64__)
constexpr int W = 4, R = 6, C = 4;   // 24 of 32
#else
constexpr int W = 4, R = 2, C = 4;   // products need registers of their own without FMA
#endif
static_assert(C == panel_vectors, "");

// Rows that share a pass over the codes, a multiple of every group of rows (packing.h); more where products cost less.
#ifdef __AMX_BF16__
constexpr int64_t max_rows = 96;
#else
constexpr int64_t max_rows = 48;
#endif

#if defined(__AMX_BF16__)
constexpr int64_t min_half_dim = 1;
#elif defined(__AVX512BF16__)
constexpr int64_t min_half_dim = 6;  // in fewer dimensions too many codes are too close for bfloat16
#else
constexpr int64_t min_half_dim = INT64_MAX;
#endif
constexpr int64_t pass_blocks = 64;  // blocks in a pass: bounds the cells that a row has to keep, and fits a bit mask

}  // namespace

#include "packing.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace {

typedef float Vec __attribute__((vector_size(4 * W), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * W)));

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

}  // namespace

#include "amx.h"

namespace {

// score + code . z: one dimension, or two in bfloat16.
template <bool half> inline Vec multiply_add(Vec score, Vec code, float z) {
#ifdef __AVX512BF16__
    if (half) return (Vec)_mm512_dpbf16_ps((__m512)score, (__m512bh)code, (__m512bh)(z - Vec{}));
#endif
    return score + code * z;
}

// R rows against one panel of C * W codes; z is (steps, R). Raises the cells of each row to the largest score seen.
template <bool half>
inline void score_tile(const float* z, const float* panel, int64_t steps, float* cells, int64_t cell_stride) {
    const Vec* code = reinterpret_cast<const Vec*>(panel);
    Vec score[R][C];
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int c = 0; c < C; ++c) score[r][c] = code[c];
    for (int64_t step = 0; step < steps; ++step) {
        code += C;
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int c = 0; c < C; ++c) score[r][c] = multiply_add<half>(score[r][c], code[c], z[r]);
        z += R;
    }
    UNROLL for (int r = 0; r < R; ++r) {
        Vec* cell = reinterpret_cast<Vec*>(cells + r * cell_stride);
        Vec largest = *cell;
        UNROLL for (int c = 0; c < C; ++c) largest = larger(score[r][c], largest);
        *cell = largest;
    }
}

int64_t blocks_of(const PackedView& book) { return (book.K + W * book.cell - 1) / (W * book.cell); }

// Floats from one row's cells to the next's. One spare vector: strides of 4 KiB would alias in the L1 cache.
int64_t stride_of_cells(const PackedView& book) {
    const int64_t blocks = blocks_of(book);
    return ((blocks < pass_blocks ? blocks : pass_blocks) + 1) * W;
}

// Floats that packed rows take at most.
int64_t packed_floats(int64_t D) { return max_rows * (D > steps_of(D, true) ? D : steps_of(D, true)); }

int64_t workspace(const PackedView& book) { return packed_floats(book.D) + max_rows * stride_of_cells(book); }

// A pass: the blocks [first, first + count) against some packed rows. Fills the cells.
template <bool half>
void score_blocks(const PackedView& book, const float* packed, int64_t rows, int64_t first, int64_t count, float* cells,
                  int64_t cell_stride) {
    const int64_t steps = steps_of(book.D, half), panel_floats = (1 + steps) * C * W;
    for (int64_t r = 0; r < max_rows; ++r) {
        Vec* cell = reinterpret_cast<Vec*>(cells + r * cell_stride);
        for (int64_t b = 0; b < count; ++b) cell[b] = Vec{} - __builtin_inff();
    }
    for (int64_t b = 0; b < count; ++b)
        for (int64_t p = 0; p < cell_of_block(book.K, W, book.cell, first + b) / C; ++p) {
            const int64_t place = (first + b) * (book.cell / C) + p;
            const float* panel = (half ? book.half_panels : book.panels) + place * panel_floats;
            for (int64_t r = 0; r < rows; r += group_of_rows(half)) {
                float* cell = cells + r * cell_stride + b * W;
                if (half && has_amx) score_tile_amx(packed + r * steps, panel, steps, cell, cell_stride);
                else score_tile<half>(packed + r * steps, panel, steps, cell, cell_stride);
            }
        }
}

// How far a score of phase 1 can be from the true one. A sum with n roundings is off by at most n u / (1 - n u) of the
// sum of its absolute terms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), here at most |z| E + E^2 / 2
// with E the largest code norm. Then underflow, also where subnormals are flushed to zero. Then what rounding z and the
// codes to bfloat16 took away. Infinite where float32 could overflow, and for z that is not finite.
double error_bound(const PackedView& book, Norms z, bool half) {
    // Normalised codes have float64 errors too, which matter when all point the same way.
    const double E = book.largest.norm + (book.metric == Metric::cosine ? 1e-8 : 0), terms = z.norm * E + E * E / 2;
    if (!(terms + z.norm + E < 1e37)) return __builtin_inf();
    const double rounding = 1.01 * (half_dim(book.D) + 8) * (0x1p-24 * terms + 0x1p-125 * (1 + z.norm + E));
    const double lost = z.half_error * E + (z.norm + z.half_error) * book.largest.half_error;
    return half ? 2 * rounding + 1.01 * lost : rounding;
}

// For one row: `proven` is what its best score is known to reach; a cell that can reach it too has at least the
// threshold returned. Keeps the largest score of every lane behind the cells.
float threshold_of(Vec* cell, int64_t count, double bound, double* proven) {
    Vec largest = cell[0];
    for (int64_t b = 1; b < count; ++b) largest = larger(cell[b], largest);
    cell[count] = largest;
    float top = largest[0];
    for (int l = 1; l < W; ++l) top = largest[l] > top ? largest[l] : top;
    *proven = top - bound > *proven ? top - bound : *proven;
    return *proven > -__builtin_inf() ? float(*proven - bound) : __builtin_inff();  // else: no finite code so far
}

int64_t count_candidates(const float* cells, int64_t cell_stride, const float* threshold, int64_t rows, int64_t count) {
    Mask candidates = {};
    for (int64_t r = 0; r < rows; ++r) {
        const Vec* cell = reinterpret_cast<const Vec*>(cells + r * cell_stride);
        for (int64_t b = 0; b < count; ++b) candidates -= cell[b] >= threshold[r];  // a lane that is true is -1
    }
    int64_t total = 0;
    for (int l = 0; l < W; ++l) total += candidates[l];
    return total;
}

// Phase 2 for one row and the cells of one pass.
void search_cells(const PackedView& book, const float* z, float threshold, int64_t first, int64_t count,
                  const float* cells, int64_t offset, Nearest* known) {
    uint32_t lanes = 0;  // bit l: lane l has candidates; no jumps, they could not be predicted
    for (int l = 0; l < W; ++l) lanes |= uint32_t(cells[count * W + l] >= threshold) << l;
    for (; lanes; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes);
        uint64_t blocks = 0;  // bit b: this lane's cell of block b is one
        for (int64_t b = 0; b < count; ++b) blocks |= uint64_t(cells[b * W + l] >= threshold) << b;
        for (; blocks; blocks &= blocks - 1) {
            const int64_t block = first + __builtin_ctzll(blocks);
            const int codes = cell_of_block(book.K, W, book.cell, block);
            const int64_t from = block * W * book.cell + l * codes;
            search_exactly(book, z, from, from + codes, offset, known);
        }
    }
}

// Both phases for up to max_rows rows. `cost` and `index` hold the result over earlier parts of a larger codebook and
// are improved; `offset` is the index of this part's first code.
void search(const PackedView& book, const float* z, int64_t rows, int64_t offset, double* cost, int64_t* index,
            float* workspace) {
    const int64_t D = book.D, blocks = blocks_of(book), cell_stride = stride_of_cells(book);
    float *packed = workspace, *cells = workspace + packed_floats(D), threshold[max_rows];
    double bound[max_rows], proven[max_rows];
    Norms norms[max_rows];
    Nearest known[max_rows];
    bool half = book.half_panels;
    const Tiles tiles(half, steps_of(D, true));
    pack_rows(book, z, rows, half, packed, norms);
    for (int64_t r = 0; r < rows; ++r) {
        bound[r] = error_bound(book, norms[r], half);
        proven[r] = -__builtin_inf();
        known[r] = {cost[r], index[r]};
        if (bound[r] == __builtin_inf() && finite(z + r * D, D))
            search_exactly(book, z + r * D, 0, book.K, offset, known + r);
    }
    for (int64_t first = 0; first < blocks; first += pass_blocks) {
        const int64_t count = blocks - first < pass_blocks ? blocks - first : pass_blocks;
        const auto score = [&] {
            (half ? score_blocks<true> : score_blocks<false>)(book, packed, rows, first, count, cells, cell_stride);
            for (int64_t r = 0; r < rows; ++r)
                threshold[r] =
                    threshold_of(reinterpret_cast<Vec*>(cells + r * cell_stride), count, bound[r], &proven[r]);
        };
        score();
        if (half && count_candidates(cells, cell_stride, threshold, rows, count) > rows * (2 + count * W / 32)) {
            half = false;  // bfloat16 cannot tell these codes apart: float32 from here on
            pack_rows(book, z, rows, half, packed, norms);
            for (int64_t r = 0; r < rows; ++r) bound[r] = error_bound(book, norms[r], half);
            score();
        }
        for (int64_t r = 0; r < rows; ++r)
            if (bound[r] < __builtin_inf())
                search_cells(book, z + r * D, threshold[r], first, count, cells + r * cell_stride, offset, &known[r]);
    }
    for (int64_t r = 0; r < rows; ++r) {
        cost[r] = known[r].cost;
        index[r] = known[r].index;
    }
}

}  // namespace

#define TABLE_(isa) extern const Kernel kernel_##isa = {#isa, W, max_rows, min_half_dim, steps_of, workspace, pack, search};
#define TABLE(isa) TABLE_(isa)
TABLE(SMALTI_ISA)
