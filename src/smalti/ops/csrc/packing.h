// Centring codes and rows and laying them out for phase 1. Part of kernel.cpp, which defines W, R and C.
#pragma once
#include "exact.h"

namespace {

constexpr int64_t chunk = 32;  // dimensions laid out at a time: of a whole panel they fit the L1 cache

#ifdef __AMX_BF16__
constexpr bool has_amx = true;
#else
constexpr bool has_amx = false;
#endif
constexpr int64_t tile_steps = 16;  // steps that one AMX instruction takes at most

// AMX takes 32 bfloat16 numbers as fast as one. So a vector of few dimensions is written as the sum of two bfloat16
// vectors, z = z1 + z2, and the product z . e as (z1, z2, z1) . (e1, e1, e2), which lacks only z2 . e2.
constexpr bool is_split(int64_t D) { return has_amx && 3 * D <= 2 * tile_steps; }

// Numbers in bfloat16 that stand for D dimensions.
constexpr int64_t half_dim(int64_t D) { return is_split(D) ? 3 * D : D; }

// Steps of one AMX instruction: as many in each, so that few are padding.
constexpr int64_t steps_at_once(int64_t steps) {
    const int64_t times = (steps + tile_steps - 1) / tile_steps;
    return (steps + times - 1) / times;
}

// Vectors that a code takes in a panel: one for each dimension, or for each pair of numbers in bfloat16.
int64_t steps_of(int64_t D, bool half) {
    if (!half) return D;
    const int64_t steps = (half_dim(D) + 1) / 2, at_once = steps_at_once(steps);
    return has_amx ? (steps + at_once - 1) / at_once * at_once : steps;
}

// Rows are laid out in groups: (steps, R), or as they are for AMX.
constexpr int group_of_rows(bool half) { return half && has_amx ? 16 : R; }

// out = scale * v - mean for up to `chunk` numbers; returns the sum of squares.
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

// Rounds to bfloat16 (for numbers that are finite).
inline float to_half(float v) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    __builtin_memcpy(&v, &bits, 4);
    return v;
}

// Stores pairs of bfloat16, rounded to nearest, in the place of floats; returns the sum of the squared errors.
inline double store_half(const float* v, int64_t count, float* out, int64_t stride) {
    double error = 0;
    for (int64_t d = 0; d < count; d += 2) {
        uint32_t pair = 0;
        for (int64_t i = d; i < d + 2 && i < count; ++i) {
            const float rounded = to_half(v[i]);
            uint32_t bits;
            __builtin_memcpy(&bits, &rounded, 4);
            error += (double(v[i]) - rounded) * (double(v[i]) - rounded);
            pair |= i == d ? bits >> 16 : bits;
        }
        __builtin_memcpy(out + d / 2 * stride, &pair, 4);
    }
    return error;
}

// Stores D numbers split in two (see is_split), the three parts behind each other. Of v it loses at most 2^-18 |v|, and
// the product z2 . e2, which is missing, is at most 2^-18 |z| |e|.
constexpr double split_error = 0x1p-16;
inline void store_split(const float* v, int64_t D, bool is_code, float* out, int64_t stride) {
    float parts[2 * tile_steps] = {};
    for (int64_t d = 0; d < D; ++d) {
        const float high = to_half(v[d]), low = to_half(v[d] - high);
        parts[d] = high;
        parts[D + d] = is_code ? high : low;
        parts[2 * D + d] = is_code ? low : high;
    }
    uint32_t bits[2 * tile_steps];
    __builtin_memcpy(bits, parts, sizeof bits);
    for (int64_t step = 0; step < steps_of(D, true); ++step) {
        const uint32_t pair = bits[2 * step] >> 16 | bits[2 * step + 1];
        __builtin_memcpy(out + step * stride, &pair, 4);
    }
}

// Packs one panel. `code_at[i]` is the code of place i, -1 for none; a code that is not finite has no place either.
Norms pack_panel(const PackedView& book, const int64_t* code_at, float* panel, float* half_panel) {
    constexpr int width = C * W;
    const int64_t D = book.D;
    double square[width] = {}, half_error[width] = {}, scale[width];
    for (int i = 0; i < width; ++i) {
        const double norm = code_at[i] < 0 ? __builtin_inf() : square_of(book.codes + code_at[i] * D, D);
        scale[i] = norm - norm != 0 ? 0 : book.metric == Metric::cosine ? 1 / length(norm) : 1;
    }
    for (int64_t d = 0; d < D; d += chunk)
        for (int i = 0; i < width; ++i) {
            const int64_t count = D - d < chunk ? D - d : chunk;
            float centred[chunk] = {};
            const float* code = book.codes + code_at[i] * D + d;
            if (scale[i] != 0) square[i] += centre(code, book.mean + d, scale[i], count, centred);
            store(centred, count, panel + (1 + d) * width + i, width);
            float* half_code = half_panel + (1 + d / 2) * width + i;
            if (half_panel && is_split(D)) store_split(centred, D, true, half_code, width);
            else if (half_panel) half_error[i] += store_half(centred, count, half_code, width);
        }
    if (half_panel)
        for (int64_t step = (half_dim(D) + 1) / 2; step < steps_of(D, true); ++step)  // padding
            for (int i = 0; i < width; ++i) half_panel[(1 + step) * width + i] = 0;
    Norms largest = {0, 0};
    for (int i = 0; i < width; ++i) {
        panel[i] = scale[i] == 0 ? -__builtin_inff() : book.metric == Metric::euclidean ? float(-square[i] / 2) : 0;
        if (half_panel) half_panel[i] = panel[i];
        largest.norm = square[i] > largest.norm ? square[i] : largest.norm;
        if (is_split(D)) half_error[i] = square[i] * split_error * split_error;
        largest.half_error = half_error[i] > largest.half_error ? half_error[i] : largest.half_error;
    }
    return {__builtin_sqrt(largest.norm), __builtin_sqrt(largest.half_error)};
}

// Packs one block; returns the largest norms in it. The panels lie one after the other over all blocks.
Norms pack(const PackedView& book, int64_t block, float* panels, float* half_panels) {
    constexpr int width = C * W;
    const int64_t start = block * W * book.cell;
    const int cell = cell_of_block(book.K, W, book.cell, block);
    Norms largest = {0, 0};
    for (int first = 0; first < cell; first += C) {
        const int64_t place = start + first * W;
        int64_t code_at[width];
        for (int c = 0; c < C; ++c)
            for (int l = 0; l < W; ++l) {
                const int64_t code = start + l * cell + first + c;
                code_at[c * W + l] = code < book.K ? code : -1;
            }
        const Norms norms = pack_panel(book, code_at, panels + place * (1 + book.D),
                                       half_panels ? half_panels + place * (1 + steps_of(book.D, true)) : nullptr);
        largest.norm = norms.norm > largest.norm ? norms.norm : largest.norm;
        largest.half_error = norms.half_error > largest.half_error ? norms.half_error : largest.half_error;
    }
    return largest;
}

// Centres rows of z and lays them out in groups.
void pack_rows(const PackedView& book, const float* z, int64_t rows, bool half, float* packed, Norms* norms) {
    const int64_t D = book.D, steps = steps_of(D, half), group = group_of_rows(half);
    const bool as_they_are = half && has_amx;
    const int64_t row_stride = as_they_are ? steps : 1, stride = as_they_are ? 1 : group;
    for (int64_t r = 0; r < rows; ++r) {
        float* out = packed + r / group * group * steps + r % group * row_stride;
        double square = 0, half_error = 0;
        for (int64_t d = 0; d < D; d += chunk) {
            const int64_t count = D - d < chunk ? D - d : chunk;
            float centred[chunk];
            square += centre(z + r * D + d, book.z_mean + d, 1, count, centred);
            if (half && is_split(D)) store_split(centred, D, false, out, stride);
            else if (half) half_error += store_half(centred, count, out + d / 2 * stride, stride);
            else store(centred, count, out + d * stride, stride);
        }
        for (int64_t step = half ? (half_dim(D) + 1) / 2 : D; step < steps; ++step) out[step * stride] = 0;  // padding
        norms[r] = {__builtin_sqrt(square), __builtin_sqrt(is_split(D) ? square * split_error * split_error : half_error)};
    }
    for (int64_t r = rows; r % group != 0; ++r)  // the rest of the last group
        for (int64_t step = 0; step < steps; ++step)
            packed[r / group * group * steps + r % group * row_stride + step * stride] = 0;
}

}  // namespace
