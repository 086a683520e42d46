// What a launch is given: a batch of cost matrices with any strides and one gamma, dummy cost and pair of lengths each.
// A kernel takes one argument, its struct: every field is 8 bytes wide. The lists below, and those of a kernel's own fields,
// are the only ones: the host reads the order of the fields from them.
#pragma once
#include "numbers.cuh"

#define SOFTDTW_BATCH_FIELDS(X)                                                                       \
  X(const void*, cost)              /* item p = (b0 * batch1 + b1) * batch2 + b2 */                   \
  X(int64, pairs)                                                                                     \
  X(int64, batch1)                                                                                    \
  X(int64, batch2)                                                                                    \
  X(int64, stride_b0)               /* strides count elements */                                      \
  X(int64, stride_b1)                                                                                 \
  X(int64, stride_b2)                                                                                 \
  X(int64, stride_row)                                                                                \
  X(int64, stride_column)                                                                             \
  X(int64, dense_b0)                /* strides of all else that is shaped like the cost */            \
  X(int64, dense_b1)                                                                                  \
  X(int64, dense_b2)                                                                                  \
  X(int64, dense_row)                                                                                 \
  X(int64, dense_column)                                                                              \
  X(int64, rows)                    /* N and M of the tensor */                                       \
  X(int64, columns)                                                                                   \
  X(const double*, gamma)           /* item p has gamma[p * gamma_stride] */                          \
  X(int64, gamma_stride)                                                                              \
  X(double, gamma_number)           /* instead, where gamma is null */                                \
  X(const double*, dummy)                                                                             \
  X(int64, dummy_stride)                                                                              \
  X(double, dummy_number)                                                                             \
  X(const int64*, x_lengths)        /* null: all N */                                                 \
  X(int64, x_lengths_stride)                                                                          \
  X(const int64*, y_lengths)                                                                          \
  X(int64, y_lengths_stride)                                                                          \
  X(int64, bandwidth)               /* -1: no band */                                                 \
  X(const double*, warp)            /* the cost of a step that repeats a frame, of which the costs have 2 w, but */ \
                                    /* not those for Wide; null and 0 as in a plain problem */         \
  X(int64, warp_stride)                                                                               \
  X(double, warp_number)                                                                              \
  X(int64, single)                  /* 1: such costs were float32, and for Wide they are */

#define SOFTDTW_LATTICE_FIELDS(X)                                                                     \
  X(const void*, grad_value)        /* in the dtype of the cost */                                    \
  X(int64, grad_value_stride)                                                                         \
  X(const void*, tangent_cost)      /* shaped like the cost */                                        \
  X(const double*, tangent_gamma)   /* contiguous, or null for zeros */                               \
  X(const double*, tangent_dummy)                                                                     \
  X(void*, value)                   /* out; null in the backward phase */                             \
  X(void*, tangent_value)                                                                             \
  X(void*, grad_cost)               /* out, shaped like the cost */                                   \
  X(double*, grad_gamma)            /* out, (pairs, parts): one part a strip; null: not wanted */     \
  X(double*, grad_dummy)                                                                              \
  X(int64, parts)                                                                                     \
  X(int*, status)                   /* (pairs) */                                                     \
  X(int*, ticket)                   /* null: a warp or a block does whole items; else strips by ticket */ \
  X(int*, progress)                 /* with tickets, (pairs, strips): rows done, 0 at first */        \
  X(int64, team)                    /* warps of a block that share an item; 1: none do; with tickets, strips of a ticket */ \
  X(void*, borders)                 /* (slots, kept_borders, span): last column of each strip; then those between groups */ \
  X(int64, kept_borders)            /* strip s has border s % kept_borders */                         \
  X(void*, checkpoints)             /* (slots, strips or group, tiles, C + 1, 32) */                  \
  X(int64, group)                   /* wide arithmetic: strips that have these in memory at once; 0: all */ \
  X(int64, kept)                    /* 1: borders and checkpoints have a slot for each item, kept for a launch to come */ \
  X(void*, flows)                   /* (slots, span + 1): visits that flow over a border, backward */ \
  X(int64, handed)                  /* 1: borders and flows are words that carry their flag, 0 at first, and the latter */ \
                                    /* (slots, 2 * groups, span + 1): into each group of strips from the right, and in it */ \
  X(void*, tiles)                   /* null: the tile lies in shared memory */                        \
  X(int64, tile_steps)              /* CHUNK times a power of two */                                  \
  X(int64, ring_chunks)             /* chunks of rows in the ring of a warp, in shared memory before the tile: a power of two */ \
  X(int64, strips)                                                                                    \
  X(int64, span)                    /* the most rows any strip has */                                 \
  X(int64, phases)                  /* FORWARD, BACKWARD or both */                                    \
  X(int64, left_only)               /* 1: only what the launch of fixed.cu before has left */

enum Phase { FORWARD = 1, BACKWARD = 2 };

struct Batch {
  SOFTDTW_BATCH_FIELDS(SOFTDTW_FIELD)

  // Of item p. Divisions of 64 bits take hundreds of instructions.
  struct Place {
    int64 b0, b1, b2;
  };
  __device__ __forceinline__ Place place_of(int64 p) const {
    if (batch1 == 1 && batch2 == 1) return {p, 0, 0};
    if (pairs < (int64(1) << 31)) {
      const unsigned q = unsigned(p), b2 = q % unsigned(batch2), rest = q / unsigned(batch2);
      return {rest / unsigned(batch1), rest % unsigned(batch1), b2};
    }
    return {p / batch2 / batch1, p / batch2 % batch1, p % batch2};
  }
  __device__ __forceinline__ int64 cost_offset(int64 p) const {
    const Place place = place_of(p);
    return place.b0 * stride_b0 + place.b1 * stride_b1 + place.b2 * stride_b2;
  }
  __device__ __forceinline__ int64 dense_offset(int64 p) const {
    const Place place = place_of(p);
    return place.b0 * dense_b0 + place.b1 * dense_b1 + place.b2 * dense_b2;
  }
  __device__ __forceinline__ double gamma_of(int64 p) const {
    return gamma ? gamma[p * gamma_stride] : gamma_number;
  }
  __device__ __forceinline__ double warp_of(int64 p) const { return warp ? warp[p * warp_stride] : warp_number; }
  __device__ __forceinline__ double dummy_of(int64 p) const {
    return dummy ? dummy[p * dummy_stride] : dummy_number;
  }
};

struct Problem : Batch {
  SOFTDTW_LATTICE_FIELDS(SOFTDTW_FIELD)
};
