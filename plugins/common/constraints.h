// What attributes may not be together. Ranges of single ones are in the table of the ops.
#ifndef VTX_COMMON_CONSTRAINTS_H
#define VTX_COMMON_CONSTRAINTS_H

#include "attributes.h"

namespace vtx {

// Throws Refused: an attribute is above a bound that another one gives, or two contradict each other.
void check_together(const Values& values);

}  // namespace vtx

#endif
