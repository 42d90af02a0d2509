// Copying slices of one array into another, as `ray_jobs.data.slices` defines it.

#include <cstdint>
#include <cstring>

using Size = std::int64_t;

// Counts, starts and places are in items of `item_bytes`; nothing is checked here.
extern "C" void copy_slices(const char* source, const Size* starts, const Size* lengths, Size num_slices,
                            Size item_bytes, char* target, const Size* places) {
  for (Size i = 0; i < num_slices; ++i)
    std::memcpy(target + places[i] * item_bytes, source + starts[i] * item_bytes, lengths[i] * item_bytes);
}
