// Phase 2: the exact search of a few codes. Part of kernel.cpp.
#pragma once
#include "search.h"

namespace {

typedef double Double4 __attribute__((vector_size(32)));

inline Double4 load4(const float* p) { return Double4{p[0], p[1], p[2], p[3]}; }
inline double sum(Double4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

double square_of(const float* v, int64_t D) {
    Double4 squares = {};
    int64_t d = 0;
    for (; d + 4 <= D; d += 4) squares += load4(v + d) * load4(v + d);
    double square = sum(squares);
    for (; d < D; ++d) square += double(v[d]) * v[d];
    return square;
}

// The length that cosine divides by: no smaller than 1e-12, as in torch.nn.functional.normalize.
inline double length(double square) { return square > 1e-24 ? __builtin_sqrt(square) : 1e-12; }

// What makes a code near z, in float64; smaller is nearer.
template <Metric metric> inline double exact_cost(const float* z, const float* code, int64_t D) {
    const double scale = metric == Metric::cosine ? length(square_of(code, D)) : 1;
    Double4 costs[2] = {};
    int64_t d = 0;
    for (; d + 8 <= D; d += 8)
        for (int i = 0; i < 2; ++i) {
            const Double4 a = load4(z + d + 4 * i), b = load4(code + d + 4 * i);
            costs[i] += metric == Metric::euclidean ? (a - b) * (a - b) : metric == Metric::dot ? -a * b : -a * (b / scale);
        }
    double cost = sum(costs[0] + costs[1]);
    for (; d < D; ++d) {
        const double a = z[d], b = code[d];
        cost += metric == Metric::euclidean ? (a - b) * (a - b) : -a * (b / scale);
    }
    if (metric == Metric::dot && cost == -__builtin_inf()) cost = __builtin_inf();  // infinite codes are never nearest
    return cost;
}

// The best code known for a row.
struct Nearest {
    double cost;
    int64_t index;
};

// Codes [from, to) of the book against what is known so far. Equal costs: the lowest index.
template <Metric metric>
void search_exactly(const PackedView& book, const float* z, int64_t from, int64_t to, int64_t offset, Nearest* known) {
    Nearest here = {__builtin_inf(), 0};
    for (int64_t k = from; k < to; ++k) {
        const double cost = exact_cost<metric>(z, book.codes + k * book.D, book.D);
        here.index = cost < here.cost ? offset + k : here.index;  // selects, not jumps: these could not be predicted
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

bool finite(const float* z, int64_t D) {
    double total = 0;
    for (int64_t d = 0; d < D; ++d) total += z[d];  // finite floats cannot overflow a double
    return total - total == 0;
}

}  // namespace
