// Second order: the probabilities of the steps into a cell, and their tangents, as the sweep backward takes them.
#pragma once
#include "numbers.cuh"

// Kept are the two smaller probabilities: the largest is what they leave to 1, but of a small one rounding would leave
// nothing that has a logarithm. Where the largest is that of the step up or left, that of the diagonal stands in its place,
// with a sign. Tangents sum to 0, and have their own places.
template <typename Real>
struct Shares {
  typedef Vector<Real, 4> Parts;
  Real up, left, up_tangent, left_tangent;  // of what stands there
  bool up_is_rest, left_is_rest;

  static __device__ __forceinline__ void put(Parts& parts, const Transition<Real>& p) {
    const bool is_up = p.up > p.diagonal && p.up >= p.left, is_left = !is_up && p.left > p.diagonal;
    parts.v[0] = is_up ? -p.diagonal : p.up;
    parts.v[1] = is_left ? -p.diagonal : p.left;
  }

  __device__ __forceinline__ explicit Shares(const Parts& p)
      : up(fabs(p.v[0])), left(fabs(p.v[1])), up_tangent(p.v[2]), left_tangent(p.v[3]), up_is_rest(Bits<Real>::has_sign(p.v[0])),
        left_is_rest(Bits<Real>::has_sign(p.v[1])) {
    const Real of_diagonal = -(p.v[2] + p.v[3]);
    if (up_is_rest) up_tangent = up > Real(0) ? of_diagonal : Real(0);
    if (left_is_rest) left_tangent = left > Real(0) ? of_diagonal : Real(0);
  }

  // What goes to each predecessor, of E (k = 0) or of F. The rest is taken from the visits, so that none are lost or made.
  __device__ __forceinline__ void share_out(const Real (&visits)[2], int k, Real& to_up, Real& to_left, Real& over) const {
    Real a = visits[k] * up, b = visits[k] * left;
    if (k == 1) {
      a += visits[0] * up_tangent;
      b += visits[0] * left_tangent;
    }
    Real rest = (visits[k] - a) - b;
    if (k == 0) rest = max(rest, Real(0));
    to_up = up_is_rest ? rest : a;
    to_left = left_is_rest ? rest : b;
    over = up_is_rest ? a : left_is_rest ? b : rest;
  }

  // E H' + F H, with the entropy H
  __device__ __forceinline__ double tangent_of_entropy(const Real (&visits)[2]) const {
    if (visits[0] == Real(0) && visits[1] == Real(0)) return 0;
    const double a = up, b = left, rest = max((1 - a) - b, 0.0);
    const double log_a = log_of_share(a, b + rest), log_b = log_of_share(b, a + rest), log_rest = log_of_share(rest, a + b);
    const double entropy = -(a * log_a + b * log_b + rest * log_rest);
    const double tangent = -(up_tangent * (log_a - log_rest) + left_tangent * (log_b - log_rest));
    return visits[0] * tangent + visits[1] * entropy;
  }
};
