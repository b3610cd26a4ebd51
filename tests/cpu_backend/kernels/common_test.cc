// The headers of kernels/common that need nothing of MindSpore's, against plain loops in double precision. Sizes are
// odd and even, shorter and longer than a vector. A failing check prints its line and the program ends with 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "common/adam.h"
#include "common/attention.h"
#include "common/elementwise.h"
#include "common/products.h"
#include "common/softmax.h"

namespace r1parallel {
namespace {
using Floats = std::vector<float>;
using Doubles = std::vector<double>;
const size_t kSizes[] = {1, 2, 3, 7, kLane - 1, kLane, kLane + 1, 4 * kLane, 4 * kLane + 3, 67, 1030};

#define CHECK(holds)                                                   \
  do {                                                                 \
    if (!(holds)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #holds); \
      std::exit(1);                                                    \
    }                                                                  \
  } while (false)

bool Close(double ours, double wanted, double tolerance = 2e-6) {
  return std::abs(ours - wanted) <= tolerance * (1.0 + std::abs(wanted));
}

bool AllClose(const Floats &ours, const Doubles &wanted, double tolerance = 2e-6) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!Close(ours[i], wanted[i], tolerance)) {
      return false;
    }
  }
  return ours.size() == wanted.size();
}

Floats Random(size_t count, float scale = 1.0f) {
  static std::mt19937 engine(1);
  std::normal_distribution<float> normal(0.0f, scale);
  Floats x(count);
  for (auto &value : x) {
    value = normal(engine);
  }
  return x;
}

double Sigmoid64(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double SiluSlope64(double x) { return Sigmoid64(x) * (1.0 + x * (1.0 - Sigmoid64(x))); }

void TestSums() {
  for (size_t size : kSizes) {
    const Floats a = Random(size), b = Random(size), c = Random(size);
    double two = 0.0, three = 0.0, largest = -INFINITY;
    for (size_t i = 0; i < size; ++i) {
      two += static_cast<double>(a[i]) * b[i];
      three += static_cast<double>(a[i]) * b[i] * c[i];
      largest = std::max<double>(largest, a[i]);
    }
    CHECK(Close(Dot(a.data(), b.data(), nullptr, size), two, 2e-5));
    CHECK(Close(Dot(a.data(), b.data(), c.data(), size), three, 2e-5));
    CHECK(Largest(a.data(), size) == largest);
  }
  CHECK(Largest(nullptr, 0) == -INFINITY);
}

void TestExp() {
  for (float x = 0.0f; x > -87.0f; x -= 0.37f) {
    const double wanted = std::exp(static_cast<double>(x));
    CHECK(std::abs(Exp(All(x))[0] / wanted - 1.0) < 3e-7);
  }
  CHECK(Exp(All(-INFINITY))[kLane - 1] < 2e-38f);
  CHECK(Sigmoid(All(-1000.0f))[0] < 1e-37f && Sigmoid(All(1000.0f))[0] == 1.0f);
}

// Parts of a tensor, at whose ends nothing else may be written.
void TestElementwise() {
  for (size_t size : kSizes) {
    const size_t begin = size / 3;
    const Floats gate = Random(size, 3.0f), up = Random(size), dy = Random(size);
    Floats sum = dy, gated(size, 7.0f), silu(size, 7.0f), slope(size, 7.0f), again(size, 7.0f), of_gate(size, 7.0f);
    Floats of_up = dy;
    Doubles sums(dy.begin(), dy.end()), products(size, 7.0), silus(size, 7.0), slopes(size, 7.0), gates(size, 7.0);
    Doubles ups(dy.begin(), dy.end());
    for (size_t i = begin; i < size; ++i) {
      const double x = gate[i];
      sums[i] += up[i];
      silus[i] = x * Sigmoid64(x);
      products[i] = silus[i] * up[i];
      slopes[i] = dy[i] * SiluSlope64(x);
      gates[i] = dy[i] * up[i] * SiluSlope64(x);
      ups[i] = dy[i] * silus[i];
    }
    AddUp(begin, size, up.data(), sum.data());
    CHECK(AllClose(sum, sums));
    GateForward(begin, size, gate.data(), up.data(), gated.data());
    CHECK(AllClose(gated, products));
    SiluForward(begin, size, gate.data(), silu.data());
    CHECK(AllClose(silu, silus));
    SiluBackward(begin, size, dy.data(), gate.data(), slope.data());
    CHECK(AllClose(slope, slopes));
    GateBackward(begin, size, gate.data(), up.data(), again.data(), of_gate.data(), of_up.data());
    CHECK(again == gated);
    CHECK(AllClose(of_gate, gates));
    CHECK(AllClose(of_up, ups));
    if (begin + 1 < size) {  // a middle part
      Floats part(size, 7.0f);
      SiluForward(begin, size - 1, gate.data(), part.data());
      CHECK(part.back() == 7.0f && Close(part[size - 2], silus[size - 2]));
    }
  }
}

void TestNorm() {
  constexpr size_t kRows = 5;
  constexpr float kEps = 0.25f;
  for (size_t size : kSizes) {
    const Floats x = Random(kRows * size), dy = Random(kRows * size), weight = Random(size);
    Floats y(kRows * size), inverse(kRows), dx(kRows * size), of_weight(size, 7.0f);
    Doubles wanted, inverses, slopes, of_weights(size);
    for (size_t row = 0; row < kRows; ++row) {
      const float *from = &x[row * size], *slope = &dy[row * size];
      double squares = 0.0, along = 0.0;
      for (size_t i = 0; i < size; ++i) {
        squares += static_cast<double>(from[i]) * from[i];
        along += static_cast<double>(slope[i]) * weight[i] * from[i];
      }
      const double factor = 1.0 / std::sqrt(squares / size + kEps);
      inverses.push_back(factor);
      for (size_t i = 0; i < size; ++i) {
        wanted.push_back(from[i] * factor * weight[i]);
        slopes.push_back(factor * (slope[i] * weight[i] - from[i] * factor * factor * along / size));
        of_weights[i] += slope[i] * from[i] * factor;
      }
    }
    NormForward(0, kRows, size, kEps, x.data(), weight.data(), y.data(), inverse.data());
    CHECK(AllClose(y, wanted) && AllClose(inverse, inverses));
    NormBackward(0, kRows, size, dy.data(), x.data(), inverse.data(), weight.data(), dx.data());
    CHECK(AllClose(dx, slopes, 5e-6));
    NormWeightGradient(0, size, kRows, size, dy.data(), x.data(), inverse.data(), of_weight.data());
    CHECK(AllClose(of_weight, of_weights, 5e-6));
  }
}

// Tokens, heads and a dimension along which the angles stay the same.
void TestRotary() {
  for (size_t half : {1, 3, 8, 17}) {
    const RotaryShape shape{{2, 3, 4}, {3, 1, 0}, 2 * half};
    const size_t size = 2 * half, heads = 24;
    const Floats x = Random(heads * size), cos = Random(6 * size), sin = Random(6 * size), dy = Random(heads * size);
    Floats y(heads * size), dx(heads * size);
    Doubles forward(heads * size), backward(heads * size);
    for (size_t head = 0; head < heads; ++head) {
      for (size_t i = 0; i < size; ++i) {
        const size_t other = (i + half) % size, angle = head / 4 * size + i;
        const double sign = i < half ? -1.0 : 1.0;
        forward[head * size + i] +=
          static_cast<double>(x[head * size + i]) * cos[angle] + sign * x[head * size + other] * sin[angle];
        backward[head * size + i] += static_cast<double>(dy[head * size + i]) * cos[angle];
        backward[head * size + other] += sign * dy[head * size + i] * sin[angle];
      }
    }
    Rotate(0, heads, shape, false, x.data(), cos.data(), sin.data(), y.data());
    CHECK(AllClose(y, forward));
    Rotate(0, heads, shape, true, dy.data(), cos.data(), sin.data(), dx.data());
    CHECK(AllClose(dx, backward));
  }
}

// A·B and Aᵀ·B, set or added.
void TestMultiply() {
  for (size_t rows : {1, 3, 4, 9}) {
    for (size_t depth : {1, 5, 33}) {
      for (size_t columns : {kLane, 2 * kLane, 5 * kLane}) {
        const Floats a = Random(rows * depth), b = Random(depth * columns), before = Random(rows * columns);
        Floats set = before, added = before, transposed(rows * columns), a_t(rows * depth);
        Doubles product(rows * columns), sum(before.begin(), before.end());
        for (size_t i = 0; i < rows; ++i) {
          for (size_t k = 0; k < depth; ++k) {
            a_t[k * rows + i] = a[i * depth + k];
            for (size_t j = 0; j < columns; ++j) {
              product[i * columns + j] += static_cast<double>(a[i * depth + k]) * b[k * columns + j];
            }
          }
        }
        for (size_t i = 0; i < product.size(); ++i) {
          sum[i] += product[i];
        }
        Multiply(a.data(), depth, 1, b.data(), columns, set.data(), columns, rows, depth, columns, false);
        CHECK(AllClose(set, product, 5e-6));
        Multiply(a.data(), depth, 1, b.data(), columns, added.data(), columns, rows, depth, columns, true);
        CHECK(AllClose(added, sum, 5e-6));
        Multiply(a_t.data(), 1, rows, b.data(), columns, transposed.data(), columns, rows, depth, columns, false);
        CHECK(transposed == set);
      }
    }
  }
}

void TestProducts() {
  for (size_t rows : {1, 7, 16, 17, 32}) {
    for (size_t depth : {1, 15, 50}) {
      for (size_t outs : {1, 5, 31}) {
        const Floats x = Random(rows * depth), w = Random(outs * depth);
        Floats side(depth * Side(rows)), y(rows * outs, 7.0f), dots(outs);
        Doubles wanted(rows * outs, 7.0);
        const size_t begin = outs / 4;
        for (size_t i = 0; i < rows; ++i) {
          for (size_t j = begin; j < outs; ++j) {
            wanted[i * outs + j] = 0.0;
            for (size_t k = 0; k < depth; ++k) {
              wanted[i * outs + j] += static_cast<double>(x[i * depth + k]) * w[j * depth + k];
            }
          }
        }
        SideBySide(x.data(), rows, depth, Side(rows), side.data());
        Products(begin, outs, side.data(), w.data(), rows, depth, outs, y.data());
        CHECK(AllClose(y, wanted, 5e-6));
        for (size_t j = begin; j < outs; ++j) {
          Dots<1>(x.data(), &w[j * depth], depth, depth, &dots[j]);
          CHECK(Close(dots[j], wanted[j], 5e-6));
        }
      }
    }
  }
}

void TestLogSoftmax() {
  constexpr size_t kRows = 3;
  for (size_t size : kSizes) {
    const Floats x = Random(kRows * size, 5.0f), dy = Random(kRows * size);
    Floats y(kRows * size), dx(kRows * size);
    Doubles logps, slopes;
    for (size_t row = 0; row < kRows; ++row) {
      double sum = 0.0, of_dy = 0.0;
      for (size_t i = row * size; i < (row + 1) * size; ++i) {
        sum += std::exp(static_cast<double>(x[i]));
        of_dy += dy[i];
      }
      for (size_t i = row * size; i < (row + 1) * size; ++i) {
        logps.push_back(x[i] - std::log(sum));
        slopes.push_back(dy[i] - std::exp(logps.back()) * of_dy);
      }
    }
    LogSoftmaxForward(0, kRows, size, x.data(), y.data());
    CHECK(AllClose(y, logps));
    LogSoftmaxBackward(0, kRows, size, y.data(), dy.data(), dx.data());
    CHECK(AllClose(dx, slopes, 2e-5));
  }
}

// One key head with two query heads; every third key is hidden, and query 0 sees nothing.
void TestAttention(size_t queries, size_t keys, size_t size) {
  constexpr size_t kGroup = 2;
  AttentionShape shape{};
  shape.queries = queries, shape.keys = keys, shape.size = size, shape.group = kGroup;
  shape.query_token = kGroup * size, shape.query_head = size, shape.key_token = size, shape.scale = 0.4f;
  const Floats q = Random(queries * kGroup * size), k = Random(keys * size), v = Random(keys * size);
  const Floats dy = Random(queries * kGroup * size);
  std::unique_ptr<bool[]> hidden(new bool[queries * keys]);
  for (size_t i = 0; i < queries * keys; ++i) {
    hidden[i] = i < keys || i % 3 == 1;
  }
  Doubles out(q.size()), of_q(q.size()), of_k(k.size()), of_v(v.size());
  for (size_t i = 0; i < queries * kGroup; ++i) {
    Doubles weights(keys), slopes(keys);
    double sum = 0.0, along = 0.0;
    for (size_t j = 0; j < keys; ++j) {
      double score = 0.0;
      for (size_t d = 0; d < size; ++d) {
        score += static_cast<double>(q[i * size + d]) * k[j * size + d] * shape.scale;
        slopes[j] += static_cast<double>(dy[i * size + d]) * v[j * size + d];
      }
      weights[j] = hidden[i / kGroup * keys + j] ? 0.0 : std::exp(score);
      sum += weights[j];
    }
    for (size_t j = 0; j < keys; ++j) {
      weights[j] = sum > 0.0 ? weights[j] / sum : 0.0;
      along += weights[j] * slopes[j];
    }
    for (size_t j = 0; j < keys; ++j) {
      for (size_t d = 0; d < size; ++d) {
        out[i * size + d] += weights[j] * v[j * size + d];
        of_v[j * size + d] += weights[j] * dy[i * size + d];
        of_q[i * size + d] += weights[j] * (slopes[j] - along) * k[j * size + d] * shape.scale;
        of_k[j * size + d] += weights[j] * (slopes[j] - along) * q[i * size + d] * shape.scale;
      }
    }
  }
  Floats y(q.size()), dq(q.size()), dk(k.size()), dv(v.size()), statistics(2 * kGroup * queries * kStatistics);
  std::vector<QueryHead> heads;
  std::vector<QueryHeadGradient> gradients;
  for (size_t n = 0; n < kGroup; ++n) {
    float *max = &statistics[2 * n * queries * kStatistics], *sum = max + queries * kStatistics;
    heads.push_back({&q[n * size], max, sum, &y[n * size]});
    gradients.push_back({&q[n * size], &y[n * size], &dy[n * size], max, sum, &dq[n * size]});
  }
  const QueryRange all{0, queries, hidden.get()};
  AttentionForward(shape, all, k.data(), v.data(), heads.data());
  CHECK(AllClose(y, out, 5e-6));
  AttentionBackward(shape, all, k.data(), v.data(), gradients.data(), dk.data(), dv.data());
  CHECK(AllClose(dq, of_q, 2e-5));
  CHECK(AllClose(dk, of_k, 2e-5));
  CHECK(AllClose(dv, of_v, 2e-5));
}

void TestAdam() {
  for (size_t size : kSizes) {
    const AdamNumbers by{1e-2f, 0.9f, 0.99f, 1e-3f, 0.1f, 0.5f};
    const Floats gradient = Random(size);
    Floats p = Random(size), m = Random(size), v(size, 0.3f);
    Doubles ps, ms, vs;
    for (size_t i = 0; i < size; ++i) {
      const double g = 0.5 * gradient[i];
      ms.push_back(0.9 * m[i] + 0.1 * g);
      vs.push_back(0.99 * v[i] + 0.01 * g * g);
      ps.push_back(p[i] - 1e-2 * (ms[i] / (std::sqrt(vs[i]) + 1e-3) + 0.1 * p[i]));
    }
    Adam(size, by, gradient.data(), p.data(), m.data(), v.data());
    CHECK(AllClose(m, ms) && AllClose(v, vs) && AllClose(p, ps));
  }
}
}  // namespace
}  // namespace r1parallel

int main() {
  using namespace r1parallel;
  TestSums();
  TestExp();
  TestElementwise();
  TestNorm();
  TestRotary();
  TestMultiply();
  TestProducts();
  TestLogSoftmax();
  for (size_t size : {size_t{5}, kLane, 2 * kLane}) {
    TestAttention(2, 3, size);
    TestAttention(19, 37, size);
    TestAttention(33, 2 * kLane, size);
  }
  TestAdam();
  std::puts("ok");
}
