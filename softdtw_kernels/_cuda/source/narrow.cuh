// A lane's numbers Z with one exponent for all of them: the quickest way over a chunk of steps, where costs are at most
// some tens of times gamma.
//
// Scaled gives each number an exponent of its own, and to align three of them takes most of a cell's instructions. Here a
// cell is a sum, a power of two and a product. The lane's exponent counts in units of 2^BITS and follows its last column,
// which a factor brings back into [1, 2^BITS) with every row; the factor rides along in the sum.
//
// All of this is exact but for the rounding of sums and products, unless a number leaves the range of normal float32. The
// chunk fails, and the sweep does it once more with Scaled, if one of these things happens:
//   - a number overflows: it stays infinite, or becomes NaN, in its column to the end of the chunk;
//   - a number is less than SMALLEST, or the sum that it is made of, or where steps are kept the reciprocal of that sum: 0
//     beyond 2^126;
//   - a cell is forbidden, since its Z is 0.
// One loss is not noticed, and does no harm: a neighbor's number that is less than 2^-30 of what it is added to, in its
// row as in the next.
#pragma once
#include "numbers.cuh"

template <int C>  // columns of the lane
struct Narrow {
  typedef Scaled<float>::Number Number;
  static constexpr int LOG_BITS = 4;  // of BITS
  static constexpr int LOG_IN_UNIT = Bits<float>::LOG_UNIT - LOG_BITS, IN_UNIT = 1 << LOG_IN_UNIT;  // of Scaled
  static constexpr float SMALLEST = 1.17549435e-38f, MUCH = 1.26217745e-29f;  // 2^-126 and 2^-96
  // The exponent of numbers that are 0 for Scaled. Drifting in the course of a chunk they stay below NEARLY_NOWHERE.
  static constexpr int NOWHERE = -(7 << 28), NEARLY_NOWHERE = -(6 << 28);

  struct Edge {  // what the lane on the right is told, and the strip on the right by way of a border
    float mantissa;
    int exponent;
  };

  float z[C], diagonal, factor;
  int exponent, shift;  // of the numbers; what the exponent is about to gain
  float least;          // of all that must not be less than SMALLEST
  bool lost;            // the neighbor's number, in this row
  bool beyond;          // something left the range of float32

  template <class Node>
  __device__ __forceinline__ Narrow(const Node (&above)[C], const Node& corner) : least(infinity<float>()), beyond(false) {
    exponent = edge_of(corner.z).exponent;
#pragma unroll
    for (int c = 0; c < C; ++c) exponent = max(exponent, edge_of(above[c].z).exponent);
#pragma unroll
    for (int c = 0; c < C; ++c) z[c] = placed(edge_of(above[c].z));
    diagonal = placed(edge_of(corner.z));
    shift = z[C - 1] == 0.0f ? 0 : units(z[C - 1]);
  }

  static __device__ __forceinline__ Edge edge_of(const Number& number) {
    return {number.mantissa, Scaled<float>::is_zero(number) ? NOWHERE : number.exponent * IN_UNIT};
  }

  static __device__ __forceinline__ Number number_of(const Edge& edge) {
    const int s = units(edge.mantissa), e = edge.exponent + s, whole = (e + IN_UNIT / 2) >> LOG_IN_UNIT, rest = e - whole * IN_UNIT;
    if (edge.mantissa == 0.0f || e < NEARLY_NOWHERE) return Scaled<float>::zero();
    return {__int_as_float(__float_as_int(edge.mantissa) + (rest - s) * (1 << (23 + LOG_BITS))), whole};
  }

  __device__ __forceinline__ float placed(const Edge& edge) {
    const int d = edge.exponent - exponent;  // at most 0, a multiple of IN_UNIT
    const bool lost = d < -IN_UNIT;
    beyond |= lost && edge.exponent != NOWHERE;
    return lost ? 0.0f : edge.mantissa * power(d);
  }

  static __device__ __forceinline__ int units(float x) { return (__float_as_int(x) - (127 << 23)) >> (23 + LOG_BITS); }
  // 2^(BITS * n), infinite at 8
  static __device__ __forceinline__ float power(int n) { return __int_as_float((127 << 23) + n * (1 << (23 + LOG_BITS))); }

  __device__ __forceinline__ Edge edge() const { return {z[C - 1], exponent}; }

  // `afresh`: nothing but zeros has been in the lane, so it takes the exponent of its neighbor. Returns the neighbor's
  // number.
  __device__ __forceinline__ float start_row(const Edge& left, bool afresh) {
    exponent = afresh ? left.exponent + units(left.mantissa) : exponent + shift;
    factor = afresh ? 0.0f : power(-shift);
    const int d = left.exponent - exponent;
    const float half = __int_as_float((127 << 23) + max(d, -15) * (1 << (22 + LOG_BITS)));  // 2^(BITS * d / 2)
    const float beside = left.mantissa * half * half;
    beyond |= d > 15 && left.mantissa != 0.0f;
    lost = beside < SMALLEST && left.exponent >= NEARLY_NOWHERE;
    return beside;
  }

  // A cell: `before` and `beside` are the numbers diagonally above and on the left, of which the latter has the row's
  // exponent. A step that is not taken has a factor of 0. With all steps, a sum is more than the number on its left.
  __device__ __forceinline__ void cross(int c, float weight, float& before, float& beside, Transition<float>& p, bool keep,
                                        bool has_all = true, float up_factor = 1.0f, float left_factor = 1.0f) {
    const float over = z[c], above = over * up_factor, left = beside * left_factor;
    const float sum = fmaf(before + above, factor, left);
    if (keep) {
      const float inverse = reciprocal(sum), rest = inverse * fmaf(-sum, inverse, 1.0f), up = above * factor;
      p.up = fmaf(up, inverse, up * rest);
      p.left = fmaf(left, inverse, left * rest);
      p.diagonal = before;  // to tell whether it is 0
      least = fminf(least, inverse);
    }
    before = over;
    z[c] = beside = sum * weight;
    least = fminf(least, c == 0 || !has_all ? fminf(sum, beside) : beside);
    if (c == 0) beyond |= lost && fminf(sum, beside) < MUCH;
  }

  __device__ __forceinline__ void end_row() { shift = units(z[C - 1]); }

  __device__ __forceinline__ bool has_failed() const {
    float all = diagonal;
#pragma unroll
    for (int c = 0; c < C; ++c) all += z[c];
    return beyond || !(least >= SMALLEST) || !(fabs(all) < infinity<float>());
  }

  __device__ __forceinline__ Number number(int c) const { return number_of({z[c], exponent}); }
  __device__ __forceinline__ Number corner() const { return number_of({diagonal, exponent}); }
};
