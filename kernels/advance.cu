// Moves the sequences from one decode step to the next on the device, so that no step waits for the host. One thread
// per sequence.
#include "device.cuh"

// block_table (B, P); positions, lens, slots, counter (B)
KERNEL(128)
advance(const int* block_table, int* positions, int* lens, int* slots, int* counter, int rows, int pages, int block_size) {
  int b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= rows) return;
  int place = lens[b];  // place of the token that is now last
  // A place beyond the pages uses the last page; the host reserves room for a whole burst.
  int page = min(place / block_size, pages - 1);
  slots[b] = block_table[(i64)b * pages + page] * block_size + place % block_size;
  lens[b] = place + 1;
  positions[b] += 1;
  counter[b] += 1;
}
EXPORT(advance)
