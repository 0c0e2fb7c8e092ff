# Enables CUDA for everything from the including folder down, for the architectures that this nvcc knows. Included by the
# top folder of a build, because a language is enabled for a folder and those below it.
#
# CMAKE_CUDA_ARCHITECTURES  compute capabilities, such as "87;90", or "native" for the GPU that is here; left out, the
#                           environment's CUDAARCHS, and without it those among VTX_KNOWN_ARCHITECTURES that this nvcc
#                           compiles for
# VTX_PTXAS_REPORT          nvcc says of every kernel how many registers it takes and what it spills
option(VTX_PTXAS_REPORT "nvcc reports registers and spills of every kernel" OFF)
# Ampere, its GeForce cards, Orin, Ada, Hopper, Blackwell, Thor, Blackwell's GeForce cards.
# Those of the target recipes (engines/*.toml) have to be among them, or run the code of one that is.
set(VTX_KNOWN_ARCHITECTURES 80 86 87 89 90 100 110 120)
set(VTX_OLDEST_NVCC 12.6)

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "no nvcc is on the path; install a CUDA toolkit from ${VTX_OLDEST_NVCC} on, or set CUDACXX to its nvcc")
endif()
# Before the language is enabled, which would take a default of CMake's own where the environment has none.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code
    OUTPUT_VARIABLE VTX_NVCC_CODES RESULT_VARIABLE VTX_NVCC_FAILED)
  if(VTX_NVCC_FAILED)
    message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} --list-gpu-code failed: ${VTX_NVCC_FAILED}")
  endif()
  string(REGEX MATCHALL "sm_[0-9]+" VTX_NVCC_CODES "${VTX_NVCC_CODES}")
  foreach(architecture IN LISTS VTX_KNOWN_ARCHITECTURES)
    if("sm_${architecture}" IN_LIST VTX_NVCC_CODES)
      list(APPEND CMAKE_CUDA_ARCHITECTURES "${architecture}-real")
    endif()
  endforeach()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS VTX_OLDEST_NVCC)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old for the kernels; ${VTX_OLDEST_NVCC} is the oldest")
endif()
message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES} by nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
