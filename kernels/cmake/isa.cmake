# Sets MALAX_ISA_LEVELS to the levels that this compiler can build, and defines malax_add_isa_level.
#
# A level is one OBJECT library of the inner loops, compiled with its own -march. Compilers that do not
# know the names x86-64-v3 and -v4 (GCC before 11) get the same sets of instructions one by one; those
# that do not know these either lose the level.
include(CheckCXXCompilerFlag)

set(MALAX_ISA_LEVELS baseline)
set(MALAX_FLAGS_baseline "")

function(malax_try_isa_level level)
  string(TOUPPER "${level}" tag)
  check_cxx_compiler_flag("-march=x86-64-${level}" MALAX_HAS_MARCH_${tag})
  string(JOIN " " explicit ${ARGN})
  check_cxx_compiler_flag("${explicit}" MALAX_HAS_EXPLICIT_${tag})
  if(MALAX_HAS_MARCH_${tag})
    set(flags "-march=x86-64-${level}")
  elseif(MALAX_HAS_EXPLICIT_${tag})
    set(flags ${ARGN})
  else()
    message(STATUS "malax: the compiler cannot build the ISA level ${level}")
    return()
  endif()
  set(MALAX_FLAGS_${level} ${flags} PARENT_SCOPE)
  set(MALAX_ISA_LEVELS ${MALAX_ISA_LEVELS} ${level} PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(MALAX_AVX2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mmovbe)
  malax_try_isa_level(v3 ${MALAX_AVX2})
  malax_try_isa_level(v4 ${MALAX_AVX2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl)
endif()

function(malax_add_isa_level level)
  set(name malax_cpu_${level})
  set(contracted_by_hand kernels/cpu/snap_block.cpp kernels/cpu/snap_adjoint_block.cpp
    kernels/cpu/network_block.cpp)
  add_library(${name} OBJECT ${contracted_by_hand} kernels/cpu/moments_block.cpp)
  # formulas/common.h says why
  set_source_files_properties(${contracted_by_hand} PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
  target_include_directories(${name} PRIVATE kernels)
  target_link_libraries(${name} PRIVATE malax_warnings)
  # the level's name is the namespace of everything in the objects: no two levels share a symbol
  target_compile_definitions(${name} PRIVATE MALAX_ISA=${level})
  target_compile_options(${name} PRIVATE ${MALAX_LOOP_FLAGS} ${MALAX_FLAGS_${level}})
  target_sources(${name} PRIVATE kernels/cpu/gaussian_block.cpp kernels/cpu/gaussian_tile.cpp)
  target_sources(malax_cpu PRIVATE $<TARGET_OBJECTS:${name}>)
  string(TOUPPER "${level}" tag)
  target_compile_definitions(malax_cpu PRIVATE MALAX_HAVE_${tag})
endfunction()

# Products of bfloat16 numbers, beside the level v4 and only if the processor has them.
macro(malax_add_bfloat16)
  check_cxx_compiler_flag(-mavx512bf16 MALAX_HAS_BF16_FLAG)
  if("v4" IN_LIST MALAX_ISA_LEVELS AND MALAX_HAS_BF16_FLAG)
    add_library(malax_cpu_v4_bf16 OBJECT kernels/cpu/network_bf16.cpp)
    target_include_directories(malax_cpu_v4_bf16 PRIVATE kernels)
    target_link_libraries(malax_cpu_v4_bf16 PRIVATE malax_warnings)
    target_compile_definitions(malax_cpu_v4_bf16 PRIVATE MALAX_ISA=v4_bf16)
    target_compile_options(malax_cpu_v4_bf16 PRIVATE ${MALAX_LOOP_FLAGS} ${MALAX_FLAGS_v4} -mavx512bf16
      -ffp-contract=off)
    target_sources(malax_cpu PRIVATE $<TARGET_OBJECTS:malax_cpu_v4_bf16>)
    target_compile_definitions(malax_cpu PRIVATE MALAX_HAVE_BF16)
  endif()
endmacro()
