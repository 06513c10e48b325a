/* The C interface of malax's kernels: plain pointers, shapes and error codes, callable from anything.
 *
 * All arrays are C-contiguous, in host memory (malax_cuda_*: device memory), owned by the caller, and
 * only read unless named "out". Lengths are in Angstrom. Every function that returns `int` returns a
 * malax_status; malax_last_error() then says what was wrong (per thread, valid until the next call).
 * No exception leaves the library and no function writes to a stream or a file.
 */
#ifndef MALAX_KERNELS_H
#define MALAX_KERNELS_H

#include <stdint.h>

#if defined(MALAX_BUILDING) && defined(__GNUC__)
#define MALAX_API __attribute__((visibility("default")))
#else
#define MALAX_API
#endif

/* Changes whenever a struct or a signature below does; the caller compares it with its own. */
#define MALAX_ABI_VERSION 3

#ifdef __cplusplus
extern "C" {
#endif

typedef enum malax_status {
    MALAX_OK = 0,
    MALAX_INVALID_ARGUMENT = 1, /* a value that can never be right */
    MALAX_OUT_OF_MEMORY = 2,
    MALAX_ISA_UNAVAILABLE = 3, /* MALAX_ISA names a level this build or this machine does not have */
    MALAX_CUDA_ERROR = 4,
    MALAX_INTERNAL_ERROR = 5
} malax_status;

/* The atoms of a structure sorted into cells, for many calls with few points each; see malax_structure_create. */
typedef struct malax_structure malax_structure;

/* A structure. Directions that are not periodic have no images; their cell vectors must still be such
 * that the three rows are linearly independent. */
typedef struct malax_atoms {
    int64_t n_atoms;
    const double *positions; /* (n_atoms, 3), inside the cell or not */
    const int32_t *types;    /* (n_atoms), 0 <= type < n_types */
    const double *cell;      /* (3, 3), rows are the lattice vectors, of either handedness */
    int32_t periodic[3];     /* 0 or 1 for each lattice vector */
    const malax_structure *prepared; /* NULL: sorted at each call */
} malax_atoms;

/* Sorts the atoms once: with it as `prepared` of the same atoms, a call's cost depends on its points and what is near
 * them, not on the number of atoms. It copies what it needs and is never changed. `types` are not looked at. */
MALAX_API int malax_structure_create(const malax_atoms *atoms, malax_structure **out);
MALAX_API void malax_structure_destroy(malax_structure *structure);

/* The bispectrum of SNAP: A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015), in the conventions
 * of LAMMPS. */
typedef struct malax_snap {
    int32_t twojmax;       /* 2..14 */
    int32_t switchflag;    /* 1: neighbours fade out by (1 + cos) / 2 towards the cutoff */
    int32_t bzeroflag;     /* 1: subtract the bispectrum of a point without neighbours */
    int32_t n_types;
    double cutoff;         /* a neighbour is at 1e-10 A < r < cutoff */
    double rfac0;          /* r = cutoff is mapped to the angle rfac0 pi on the 3-sphere, > 0 */
    double rmin0;          /* r = rmin0 is mapped to the angle 0; 0 <= rmin0 < cutoff */
    const double *weights; /* (n_types) weight of each type's neighbours */
} malax_snap;

/* The number of features for this twojmax; 0 if it is out of range. */
MALAX_API int64_t malax_bispectrum_size(int32_t twojmax);

/* out[p row_stride + f]: the bispectrum at points[p] (n_points, 3), f in LAMMPS order. What a point gets does not
 * depend on the other points of the call, their order, or the number of threads (0: OpenMP's choice). */
MALAX_API int malax_bispectrum_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                   const double *points, int32_t threads, int64_t row_stride, double *out);
MALAX_API int malax_bispectrum_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                   const double *points, int32_t threads, int64_t row_stride, float *out);

/* The same on one thread, and the wall seconds of its stages: out: seconds (5): sorting of points and atoms, neighbour
 * lists, sums over neighbours (U), invariants (B), writing. For measurements. */
#define MALAX_BISPECTRUM_STAGES 5
MALAX_API int malax_bispectrum_stages_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                          const double *points, double *out, double *seconds);
MALAX_API int malax_bispectrum_stages_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                          const double *points, float *out, double *seconds);

/* Sums of normalised Gaussians over the atoms of each type: the value of column t at r is
 * weights[t] sum_i exp(-|r - r_i|^2 / (2 sigma[t]^2)) / (sigma[t] sqrt(2 pi))^3 over the atoms and images of type
 * t with |r - r_i| < cutoff[t] (LAMMPS' compute gaussian/grid/local). Terms below 4e-18 (float) or 1e-147 (double)
 * of their peak are left out. */
typedef struct malax_gaussian {
    int32_t n_types;
    const double *sigma;   /* (n_types) 1e-6 to 1e6 A */
    const double *cutoff;  /* (n_types) > 0 */
    const double *weights; /* (n_types) */
} malax_gaussian;

/* A grid in the cell of the atoms: point (i, j, k) is at i/nx a + j/ny b + k/nz c and has the flat index
 * (i ny + j) nz + k; the points of a call are start..stop-1. */
typedef struct malax_grid {
    int32_t shape[3];
    int64_t start, stop;
} malax_grid;

/* out[p row_stride + t]: the value of column t at the points (n_points, 3). What a point gets does not depend on
 * the other points of the call, their order, or the number of threads (0: OpenMP's choice). */
MALAX_API int malax_gaussian_f64(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                                 const double *points, int32_t threads, int64_t row_stride, double *out);
MALAX_API int malax_gaussian_f32(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                                 const double *points, int32_t threads, int64_t row_stride, float *out);
/* The same at the points of a grid, many times faster: out[(p - start) row_stride + t]. What a point gets depends
 * neither on the range nor on the number of threads; it differs from the list of points by rounding. */
MALAX_API int malax_gaussian_grid_f64(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                      const malax_grid *grid, int32_t threads, int64_t row_stride, double *out);
MALAX_API int malax_gaussian_grid_f32(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                      const malax_grid *grid, int32_t threads, int64_t row_stride, float *out);
/* Adjoints: from gradient[p row_stride + t] = dE/dvalue, out: positions_gradient (n_atoms, 3) = dE/dr_i with cell
 * and points held; strain_gradient (3, 3) = dE/d(eps) where atoms, cell and points are mapped by r -> r (1 + eps);
 * points_gradient (n_points, 3) or NULL. The jump at the cutoff is not differentiated. Sums are added in an order
 * that does not depend on the number of threads. */
MALAX_API int malax_gaussian_adjoint_f64(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                         int64_t n_points, const double *points, int32_t threads,
                                         int64_t row_stride, const double *gradient, double *positions_gradient,
                                         double *strain_gradient, double *points_gradient);
MALAX_API int malax_gaussian_adjoint_f32(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                         int64_t n_points, const double *points, int32_t threads,
                                         int64_t row_stride, const float *gradient, double *positions_gradient,
                                         double *strain_gradient, double *points_gradient);
MALAX_API int malax_gaussian_grid_adjoint_f64(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                              const malax_grid *grid, int32_t threads, int64_t row_stride,
                                              const double *gradient, double *positions_gradient,
                                              double *strain_gradient);
MALAX_API int malax_gaussian_grid_adjoint_f32(const malax_atoms *atoms, const malax_gaussian *gaussian,
                                              const malax_grid *grid, int32_t threads, int64_t row_stride,
                                              const float *gradient, double *positions_gradient,
                                              double *strain_gradient);

/* The adjoint of the bispectrum: with gradient[p, f] = dE/dB[p, f] (n_points, n_features) of some number E,
 *   out: atoms_out (n_atoms, 3)    dE/d(position of the atom), all its images moving with it, cell and points fixed;
 *   out: strain_out (3, 3) or NULL dE/d(eps[a, b]) at eps = 0, where positions, cell and points all become x (1 + eps),
 *                                  rows: x[b] + sum over a of x[a] eps[a, b];
 *   out: points_out (n_points, 3) or NULL dE/d(point).
 * atoms_out and points_out are in units of E per Angstrom, strain_out of E. The arithmetic is that of the gradient's
 * type, the sums over points are in double; none depends on the number of threads (0: OpenMP's choice). bzeroflag has
 * no effect. Where the bispectrum has a step (an atom on a point; without switchflag at the cutoff; where the angle on
 * the 3-sphere is a multiple of pi) the derivative of the side on which the neighbour stands is meant. */
MALAX_API int malax_bispectrum_adjoint_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                           const double *points, const double *gradient, int32_t threads,
                                           double *atoms_out, double *strain_out, double *points_out);
MALAX_API int malax_bispectrum_adjoint_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                           const double *points, const float *gradient, int32_t threads,
                                           double *atoms_out, double *strain_out, double *points_out);

/* The product with the derivative itself: out[p, f] (n_points, n_features) is the change of the bispectrum, to first
 * order, when the atoms move by atoms_change (n_atoms, 3), the points by points_change (n_points, 3), and everything by
 * strain (3, 3) as above. Each of the three may be NULL for no change. What a point gets depends neither on the other
 * points nor on the threads. */
MALAX_API int malax_bispectrum_jvp_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                       const double *points, const double *atoms_change, const double *strain,
                                       const double *points_change, int32_t threads, double *out);
MALAX_API int malax_bispectrum_jvp_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                       const double *points, const double *atoms_change, const double *strain,
                                       const double *points_change, int32_t threads, float *out);

/* One pass over an LDOS: values[p, k] = sum_e ldos[p, e] weights[k, e]; sums[e] = sum_p ldos[p, e].
 * ldos (n_points, n_energies); weights (n_weights, n_energies), n_weights may be 0; out: values
 * (n_points, n_weights), sums (n_energies). Sums are in double and in an order that does not depend on
 * the number of threads. */
MALAX_API int malax_ldos_moments_f64(int64_t n_points, int64_t n_energies, int64_t n_weights,
                                     const double *ldos, const double *weights, int32_t threads,
                                     double *values, double *sums);
MALAX_API int malax_ldos_moments_f32(int64_t n_points, int64_t n_energies, int64_t n_weights,
                                     const float *ldos, const double *weights, int32_t threads,
                                     double *values, double *sums);

/* The numbers of a cube file in Fortran's 6E13.5: `n_runs` runs of `nz` numbers, 13 characters each, six to a line, each
 * run on lines of its own; `length` characters of text, of which what follows the runs is not looked at. out: values
 * (n_runs, nz); matches: 1, or 0 if the text is not in this format (values then hold nothing of use). */
MALAX_API int malax_cube_columns(int64_t n_runs, int64_t nz, int64_t length, const char *text, double *out,
                                 int32_t *matches);

/* A network of dense layers: x <- activation(x W^T + b), layer after layer, from (x - mean) / scale of the inputs.
 * Layer l maps widths[l] values to widths[l + 1]: weights[l] (widths[l + 1], widths[l]), biases[l] (widths[l + 1]);
 * mean and scale (widths[0]). It copies the weights, packed for the ISA level of that moment, and is never changed.
 * With bfloat16 = 1 all layers but the first round weights and inputs to bfloat16 and sum their products in single
 * precision (the first does not: features of small spread would lose what distinguishes them). */
typedef struct malax_network_f32 malax_network_f32;
typedef struct malax_network_f64 malax_network_f64;

typedef enum malax_activation {
    MALAX_IDENTITY = 0,
    MALAX_RELU = 1,
    MALAX_LEAKY_RELU = 2, /* 0.01 x below zero */
    MALAX_SILU = 3,       /* x / (1 + exp(-x)) */
    MALAX_GELU = 4,       /* x times the normal distribution function of x */
    MALAX_TANH = 5
} malax_activation;

MALAX_API int malax_network_create_f32(int32_t n_layers, const int64_t *widths, const int32_t *activations,
                                       const float *const *weights, const float *const *biases, const float *mean,
                                       const float *scale, int32_t bfloat16, malax_network_f32 **out);
MALAX_API int malax_network_create_f64(int32_t n_layers, const int64_t *widths, const int32_t *activations,
                                       const double *const *weights, const double *const *biases, const double *mean,
                                       const double *scale, malax_network_f64 **out);
MALAX_API void malax_network_destroy_f32(malax_network_f32 *network);
MALAX_API void malax_network_destroy_f64(malax_network_f64 *network);

/* out (n_rows, widths[n_layers]) from `rows`, widths[0] values each, that begin `stride` values after one another.
 * What a row gets depends neither on the other rows nor on the number of threads (0: OpenMP's choice). */
MALAX_API int malax_network_apply_f32(const malax_network_f32 *network, int64_t n_rows, int64_t stride,
                                      const float *rows, int32_t threads, float *out);
MALAX_API int malax_network_apply_f64(const malax_network_f64 *network, int64_t n_rows, int64_t stride,
                                      const double *rows, int32_t threads, double *out);

MALAX_API int malax_abi_version(void);
MALAX_API const char *malax_version(void);
MALAX_API const char *malax_compiler(void);
/* 1 if compiled with OpenMP */
MALAX_API int malax_has_openmp(void);
/* 1 if networks with bfloat16 can be had here and now: build, machine and MALAX_ISA all allow it */
MALAX_API int malax_has_bfloat16(void);
/* The ISA levels this build holds and this machine runs, best first, separated by spaces. */
MALAX_API const char *malax_isa_levels(void);
/* The level that runs now ("baseline", "v3", "v4"), by choice of the machine or of the environment
 * variable MALAX_ISA; NULL if that names one that cannot be had (see malax_last_error). */
MALAX_API const char *malax_isa(void);
/* The message for this thread's latest error; "" if there was none. */
MALAX_API const char *malax_last_error(void);

/* ---- libmalax_cuda.so: the same on the current device, arrays in device memory --------------------- */

/* Bytes of device memory that malax_cuda_ldos_moments_* needs as workspace. */
MALAX_API int64_t malax_cuda_ldos_moments_workspace(int64_t n_points, int64_t n_energies);
/* As malax_ldos_moments_*, asynchronous on `stream` (a cudaStream_t; NULL is the default stream). */
MALAX_API int malax_cuda_ldos_moments_f64(int64_t n_points, int64_t n_energies, int64_t n_weights,
                                          const double *ldos, const double *weights, void *workspace,
                                          double *values, double *sums, void *stream);
MALAX_API int malax_cuda_ldos_moments_f32(int64_t n_points, int64_t n_energies, int64_t n_weights,
                                          const float *ldos, const double *weights, void *workspace,
                                          double *values, double *sums, void *stream);
MALAX_API int malax_cuda_abi_version(void);
/* The number of CUDA devices that can be used now, 0 if there is none or no driver. */
MALAX_API int malax_cuda_device_count(void);
MALAX_API const char *malax_cuda_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
