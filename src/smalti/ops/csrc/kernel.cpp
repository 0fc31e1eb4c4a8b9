// The inner loops of the search (search.h says how it works), written once with the vector types of GCC and Clang.
// CMake compiles this file once per instruction set, which SMALTI_ISA names. Nothing here has external linkage but the
// table at the end, and the standard library stays out: of an inline function that several translation units contain, the
// linker keeps one copy, and an AVX-512 copy would crash on other machines.
#include "search.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 16")

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
#ifdef __AVX512BF16__
constexpr int64_t min_half_dim = 6;  // from this dimension on phase 1 starts in bfloat16; below, too many codes are close
#else
constexpr int64_t min_half_dim = INT64_MAX;
#endif
constexpr int64_t max_rows = 48;     // rows that share a pass over the codes: a multiple of every R
constexpr int64_t pass_blocks = 64;  // blocks in a pass: bounds the cells that a row has to keep
constexpr int64_t chunk = 32;        // dimensions packed at a time: of a whole panel they fit the L1 cache

typedef float Vec __attribute__((vector_size(4 * W), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * W)));
typedef double Double4 __attribute__((vector_size(32)));

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// score + code . z: one dimension, or two as pairs of bfloat16 at twice the speed.
template <bool half> inline Vec multiply_add(Vec score, Vec code, float z) {
#ifdef __AVX512BF16__
    if (half) return (Vec)_mm512_dpbf16_ps((__m512)score, (__m512bh)code, (__m512bh)(z - Vec{}));
#endif
    return score + code * z;
}

// R rows against one panel of C * W codes, in `steps` steps of one or two dimensions; z is (steps, R). Raises the cells
// of each row to the largest score seen.
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

inline Double4 load4(const float* p) { return Double4{p[0], p[1], p[2], p[3]}; }
inline double sum(Double4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// The length that cosine divides by: no smaller than 1e-12, as in torch.nn.functional.normalize.
inline double length(double square) { return square > 1e-24 ? __builtin_sqrt(square) : 1e-12; }

// What makes a code near z, in float64; smaller is nearer.
template <Metric metric>
inline double exact_cost(const float* z, const float* code, int64_t D) {
    Double4 costs[2] = {}, squares[2] = {};
    int64_t d = 0;
    for (; d + 8 <= D; d += 8) UNROLL for (int i = 0; i < 2; ++i) {
        const Double4 a = load4(z + d + 4 * i), b = load4(code + d + 4 * i);
        costs[i] += metric == Metric::euclidean ? (a - b) * (a - b) : -a * b;
        if (metric == Metric::cosine) squares[i] += b * b;
    }
    double cost = sum(costs[0] + costs[1]), square = sum(squares[0] + squares[1]);
    for (; d < D; ++d) {
        const double a = z[d], b = code[d];
        cost += metric == Metric::euclidean ? (a - b) * (a - b) : -a * b;
        square += b * b;
    }
    if (metric == Metric::cosine) cost /= length(square);
    if (metric == Metric::dot && cost == -__builtin_inf()) cost = __builtin_inf();  // an infinite code is never the nearest
    return cost;
}

// The best code known for a row.
struct Nearest {
    double cost;
    int64_t index;
};

// Phase 2: codes [from, to) of the book against what is known so far. Equal costs: the lowest index.
template <Metric metric>
void search_exactly(const PackedView& book, const float* z, int64_t from, int64_t to, int64_t offset, Nearest* known) {
    Nearest here = {__builtin_inf(), 0};
    for (int64_t k = from; k < to; ++k) {
        const double cost = exact_cost<metric>(z, book.codes + k * book.D, book.D);
        here.index = cost < here.cost ? offset + k : here.index;  // selects, not jumps: no branch predictor guesses these
        here.cost = cost < here.cost ? cost : here.cost;
    }
    if (here.cost < known->cost || (here.cost == known->cost && here.index < known->index)) *known = here;
}

void search_exactly(const PackedView& book, const float* z, int64_t from, int64_t to, int64_t offset, Nearest* known) {
    if (to > book.K) to = book.K;
    switch (book.metric) {
        case Metric::euclidean: return search_exactly<Metric::euclidean>(book, z, from, to, offset, known);
        case Metric::cosine: return search_exactly<Metric::cosine>(book, z, from, to, offset, known);
        case Metric::dot: return search_exactly<Metric::dot>(book, z, from, to, offset, known);
    }
}

// How far a score of phase 1 can be from the true one. A sum with n roundings is off by at most n u / (1 - n u) of the sum
// of its absolute terms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), here at most |z| E + E^2 / 2 with E
// the largest code norm. Then underflow, also where subnormals are flushed to zero. Then what was lost by rounding z and
// the codes to bfloat16, as measured. Infinite where float32 could overflow.
double error_bound(const PackedView& book, Norms z, bool half) {
    const double E = book.largest.norm, terms = z.norm * E + E * E / 2;
    if (!(terms + z.norm + E < 1e37)) return __builtin_inf();
    const double rounding = 1.01 * (book.D + 8) * (0x1p-24 * terms + 0x1p-125 * (1 + z.norm + E));
    return half ? 2 * rounding + 1.01 * (z.half_error * E + (z.norm + z.half_error) * book.largest.half_error) : rounding;
}

double square_of(const float* v, int64_t D) {
    Double4 squares = {};
    int64_t d = 0;
    for (; d + 4 <= D; d += 4) squares += load4(v + d) * load4(v + d);
    double square = sum(squares);
    for (; d < D; ++d) square += double(v[d]) * v[d];
    return square;
}

// out = scale * v - mean for up to `chunk` numbers; returns its sum of squares.
inline double centre(const float* v, const float* mean, double scale, int64_t count, float* out) {
    Double4 squares = {};
    int64_t d = 0;
    for (; d + 4 <= count; d += 4) {
        const Double4 centred = load4(v + d) * scale - load4(mean + d);
        for (int i = 0; i < 4; ++i) out[d + i] = float(centred[i]);
        squares += centred * centred;
    }
    double square = sum(squares);
    for (; d < count; ++d) {
        const double centred = v[d] * scale - mean[d];
        out[d] = float(centred);
        square += centred * centred;
    }
    return square;
}

inline void store(const float* v, int64_t count, float* out, int64_t stride) {
    for (int64_t d = 0; d < count; ++d) out[d * stride] = v[d];
}

// Stores pairs of bfloat16, rounded to nearest, in the place of floats; returns the sum of the squared errors.
inline double store_half(const float* v, int64_t count, float* out, int64_t stride) {
    float error = 0;
    for (int64_t d = 0; d < count; d += 2) {
        uint32_t pair = 0;
        for (int64_t i = d; i < d + 2 && i < count; ++i) {
            uint32_t bits;
            __builtin_memcpy(&bits, v + i, 4);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
            float rounded;
            __builtin_memcpy(&rounded, &bits, 4);
            error += (v[i] - rounded) * (v[i] - rounded);
            pair |= i == d ? bits >> 16 : bits;
        }
        __builtin_memcpy(out + d / 2 * stride, &pair, 4);
    }
    return error;
}

// Packs one block of codes; returns the largest norms in it.
Norms pack(const PackedView& book, int64_t block, float* panels, float* half_panels) {
    const int64_t D = book.D, start = block * W * book.cell, width = C * W;
    const int cell = cell_of_block(book.K, W, book.cell, block);
    Norms largest = {0, 0};
    for (int64_t p = 0; p < cell / C; ++p) {
        float* panel = panels + (start + p * width) * (D + 1);
        float* half = half_panels ? half_panels + (start + p * width) * ((D + 1) / 2 + 1) : nullptr;
        double square[C * W] = {}, half_error[C * W] = {}, scale[C * W];
        for (int i = 0; i < width; ++i) {
            const int64_t k = start + i / C * cell + p * C + i % C;
            const double norm = k < book.K ? square_of(book.codes + k * D, D) : __builtin_inf();
            scale[i] = norm - norm != 0 ? 0 : book.metric != Metric::cosine ? 1 : 1 / length(norm);
        }
        for (int64_t d = 0; d < D; d += chunk)
            for (int i = 0; i < width; ++i) {
                const int64_t k = start + i / C * cell + p * C + i % C, count = D - d < chunk ? D - d : chunk;
                float centred[chunk] = {};
                if (scale[i] != 0) square[i] += centre(book.codes + k * D + d, book.mean + d, scale[i], count, centred);
                const int64_t place = i % C * W + i / C;
                store(centred, count, panel + (d + 1) * width + place, width);
                if (half) half_error[i] += store_half(centred, count, half + (d / 2 + 1) * width + place, width);
            }
        for (int i = 0; i < width; ++i) {
            const float h = scale[i] == 0 ? __builtin_inff() : book.metric == Metric::euclidean ? float(square[i] / 2) : 0;
            panel[i % C * W + i / C] = -h;
            if (half) half[i % C * W + i / C] = -h;
            largest.norm = square[i] > largest.norm ? square[i] : largest.norm;
            largest.half_error = half_error[i] > largest.half_error ? half_error[i] : largest.half_error;
        }
    }
    return {__builtin_sqrt(largest.norm), __builtin_sqrt(largest.half_error)};
}

// Centres rows of z and lays them out in groups of R, each (steps, R).
void pack_rows(const PackedView& book, const float* z, int64_t rows, bool half, float* packed, Norms* norms) {
    const int64_t D = book.D, steps = half ? (D + 1) / 2 : D;
    for (int64_t r = 0; r < rows; ++r) {
        double square = 0, half_error = 0;
        for (int64_t d = 0; d < D; d += chunk) {
            float centred[chunk], *out = packed + r / R * R * steps + r % R;
            const int64_t count = D - d < chunk ? D - d : chunk;
            square += centre(z + r * D + d, book.z_mean + d, 1, count, centred);
            if (half) half_error += store_half(centred, count, out + d / 2 * R, R);
            else store(centred, count, out + d * R, R);
        }
        norms[r] = {__builtin_sqrt(square), __builtin_sqrt(half_error)};
    }
    for (int64_t r = rows; r % R != 0; ++r)  // the rest of the last group
        for (int64_t step = 0; step < steps; ++step) packed[r / R * R * steps + step * R + r % R] = 0;
}

bool finite(const float* z, int64_t D) {
    double total = 0;
    for (int64_t d = 0; d < D; ++d) total += z[d];  // finite floats cannot overflow a double
    return total - total == 0;
}

int64_t blocks_of(const PackedView& book) { return (book.K + W * book.cell - 1) / (W * book.cell); }

// Floats from one row's cells to the next's. One spare vector: strides of 4 KiB would alias in the L1 cache.
int64_t stride_of_cells(const PackedView& book) {
    const int64_t blocks = blocks_of(book);
    return ((blocks < pass_blocks ? blocks : pass_blocks) + 1) * W;
}

int64_t workspace(const PackedView& book) { return max_rows * (book.D + stride_of_cells(book)); }

// The blocks [first, first + count) against all packed rows: fills the cells.
template <bool half>
void score_blocks(const PackedView& book, const float* packed, int64_t rows, int64_t first, int64_t count, float* cells,
                  int64_t cell_stride) {
    const int64_t steps = half ? (book.D + 1) / 2 : book.D;
    for (int64_t r = 0; r < max_rows; ++r) {
        Vec* cell = reinterpret_cast<Vec*>(cells + r * cell_stride);
        for (int64_t b = 0; b < count; ++b) cell[b] = Vec{} - __builtin_inff();
    }
    for (int64_t b = 0; b < count; ++b)
        for (int64_t p = 0; p < cell_of_block(book.K, W, book.cell, first + b) / C; ++p) {
            const float* panel = (half ? book.half_panels : book.panels) + ((first + b) * (book.cell / C) + p) * (steps + 1) * C * W;
            for (int64_t r = 0; r < rows; r += R)
                score_tile<half>(packed + r * steps, panel, steps, cells + r * cell_stride + b * W, cell_stride);
        }
}

// One row of a pass: `proven` is what the best score is known to reach; a cell that can reach it too has at least the
// returned threshold. Keeps the largest score of every lane behind the cells.
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
void search_cells(const PackedView& book, const float* z, float threshold, int64_t first, int64_t count, const float* cells,
                  int64_t offset, Nearest* known) {
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

// Both phases for up to max_rows rows. `cost` and `index` hold the result over earlier parts of a larger codebook and are
// improved; `offset` is the index of this part's first code.
void search(const PackedView& book, const float* z, int64_t rows, int64_t offset, double* cost, int64_t* index,
            float* workspace) {
    const int64_t D = book.D, blocks = blocks_of(book), cell_stride = stride_of_cells(book);
    float *packed = workspace, *cells = workspace + max_rows * D, threshold[max_rows];
    double bound[max_rows], proven[max_rows];
    Norms norms[max_rows];
    Nearest known[max_rows];
    bool half = book.half_panels;
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
                threshold[r] = threshold_of(reinterpret_cast<Vec*>(cells + r * cell_stride), count, bound[r], proven + r);
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
                search_cells(book, z + r * D, threshold[r], first, count, cells + r * cell_stride, offset, known + r);
    }
    for (int64_t r = 0; r < rows; ++r) {
        cost[r] = known[r].cost;
        index[r] = known[r].index;
    }
}

}  // namespace

#define TABLE_(isa) extern const Kernel kernel_##isa = {#isa, W, max_rows, min_half_dim, workspace, pack, search};
#define TABLE(isa) TABLE_(isa)
TABLE(SMALTI_ISA)
