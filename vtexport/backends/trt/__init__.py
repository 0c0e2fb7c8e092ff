"""TensorRT and TensorRT-RTX, one code for both: engines of a bundle's graphs, and running one."""
