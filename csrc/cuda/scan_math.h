// The scan's mathematics, element by element, for host and device alike.
#pragma once

#include <cmath>

#include "ptx.h"
#include "scan_args.h"

namespace mmvmamba {

// The exact function and not exp2(x log2(e)): rounding that product costs as many digits as the
// exponent has.
MMVMAMBA_HD float exp_of(float x) { return ::expf(x); }
MMVMAMBA_HD double exp_of(double x) { return ::exp(x); }

// log(1 + e) for 0 <= e <= 1: e times a polynomial through Chebyshev nodes, so that a small e keeps
// its digits; relative error 1.6e-7 with the rounding. Special functions have a quarter of the
// throughput of a multiply-add or less.
MMVMAMBA_HD float log1p_of(float e) {
  float p = -3.1760570127516985e-3f;
  p = p * e + 1.9542526453733444e-2f;
  p = p * e - 5.6373611092567444e-2f;
  p = p * e + 0.10543623566627502f;
  p = p * e - 0.1526966691017151f;
  p = p * e + 0.1966327428817749f;
  p = p * e - 0.24951615929603577f;
  p = p * e + 0.33329710364341736f;
  p = p * e - 0.49999892711639404f;
  return (p * e) * e + e;  // rounded once where e is small
}
MMVMAMBA_HD double log1p_of(double e) { return ::log1p(e); }

template <typename io_t>
constexpr bool kIsNarrow = sizeof(io_t) == 2;

// A state's rate, scaled for decay_of.
template <typename io_t, typename T>
MMVMAMBA_HD T scale_rate(T rate) {
  return kIsNarrow<io_t> ? rate * T(1.4426950408889634) : rate;
}
template <typename io_t, typename T>
MMVMAMBA_HD T decay_of(T dt, T scaled_rate) {
  if constexpr (kIsNarrow<io_t>) {
    return exp2_approx(dt * scaled_rate);
  } else {
    return exp_of(dt * scaled_rate);
  }
}

// log(1 + exp(x)), x itself above 20 as in PyTorch, and its derivative. Where the I/O type has 16
// bits, a polynomial of degree 5 with a relative error of 8.4e-6; above 20 it is x by itself.
template <typename io_t, typename T>
MMVMAMBA_HD T softplus(T x, T* slope) {
  if constexpr (kIsNarrow<io_t>) {
    const float e = exp2_approx(-fabsf(x) * 1.4426950408889634f);
    float p = -0.0238691893f;
    p = p * e + 0.1012224f;
    p = p * e - 0.210048812f;
    p = p * e + 0.325206739f;
    p = p * e - 0.499361375f;
    p = p * e + 0.999991598f;
    *slope = (x < 0 ? e : 1.f) * rcp_approx(1.f + e);
    return p * e + fmaxf(x, 0.f);
  } else {
    const T e = exp_of(x < 0 ? x : -x);  // in (0, 1]: no overflow
    *slope = x > T(20) ? T(1) : (x < 0 ? e : T(1)) / (T(1) + e);
    return x > T(20) ? x : (x < 0 ? T(0) : x) + log1p_of(e);
  }
}

}  // namespace mmvmamba
