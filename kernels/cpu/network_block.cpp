// Networks of single and double precision. Compiled once per ISA level; see common.h for what that forbids.
#include "network_layers.h"

MALAX_NAMESPACE_BEGIN

void network_block_f32(const NetworkBlock<float> &);
void network_block_f64(const NetworkBlock<double> &);

void network_block_f32(const NetworkBlock<float> &block) { network_layers<Numbers<float>>(block); }
void network_block_f64(const NetworkBlock<double> &block) { network_layers<Numbers<double>>(block); }

MALAX_NAMESPACE_END
