// Scores in bfloat16 by Intel's Advanced Matrix Extensions: one instruction multiplies 16 rows with 16 codes in up to 32
// dimensions. A panel (search.h) holds its codes as that instruction wants them. Part of kernel.cpp.
#pragma once

namespace {

#ifdef __AMX_BF16__

// Sets the shapes of this thread's tile registers for as long as it lives.
class Tiles {
public:
    Tiles(bool used, int64_t steps) : used_(used) {
        if (!used) return;
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } config = {};
        const auto shape = [&](int tile, int64_t rows, int64_t numbers) {
            config.rows[tile] = uint8_t(rows);
            config.row_bytes[tile] = uint16_t(4 * numbers);
        };
        const int64_t at_once = steps_at_once(steps);
        config.palette = 1;
        for (int c = 0; c < C; ++c) shape(c, 16, W);  // scores
        shape(4, 16, at_once);                        // rows
        shape(5, at_once, W), shape(6, at_once, W);   // codes
        _tile_loadconfig(&config);
    }
    ~Tiles() {
        if (used_) _tile_release();
    }

private:
    const bool used_;
};

// 16 rows (16, steps) against one panel. Raises the cells of each row to the largest score seen.
inline void score_tile_amx(const float* z, const float* panel, int64_t steps, float* cells, int64_t cell_stride) {
    constexpr int64_t code_stride = C * W * sizeof(float);
    const int64_t at_once = steps_at_once(steps);
    _tile_loadd(0, panel, 0);  // stride 0: -h of each code in all 16 rows
    _tile_loadd(1, panel + W, 0);
    _tile_loadd(2, panel + 2 * W, 0);
    _tile_loadd(3, panel + 3 * W, 0);
    for (int64_t step = 0; step < steps; step += at_once) {
        const float* code = panel + (1 + step) * C * W;
        _tile_loadd(4, z + step, steps * sizeof(float));
        _tile_loadd(5, code, code_stride);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, code + W, code_stride);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, code + 2 * W, code_stride);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, code + 3 * W, code_stride);
        _tile_dpbf16ps(3, 4, 6);
    }
    alignas(64) Vec score[C][16];
    _tile_stored(0, score[0], sizeof(Vec));
    _tile_stored(1, score[1], sizeof(Vec));
    _tile_stored(2, score[2], sizeof(Vec));
    _tile_stored(3, score[3], sizeof(Vec));
    for (int r = 0; r < 16; ++r) {
        Vec* cell = reinterpret_cast<Vec*>(cells + r * cell_stride);
        *cell = larger(larger(larger(score[0][r], score[1][r]), larger(score[2][r], score[3][r])), *cell);
    }
}

#else

struct Tiles {
    Tiles(bool, int64_t) {}
};

inline void score_tile_amx(const float*, const float*, int64_t, float*, int64_t) {}

#endif

}  // namespace
