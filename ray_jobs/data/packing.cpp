// Best-fit decreasing over lengths, as `ray_jobs.data.packing` defines it: the same rows as `pack_in_python`.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

using Size = std::int64_t;
using U64 = std::uint64_t;

// The rows that have some room left, by their room; of equal ones the last that came is taken first.
class RowsByRoom {
 public:
  explicit RowsByRoom(Size row_length) : top_(row_length + 1, -1), occupied_(row_length / 64 + 1, 0) {}

  void put(Size row, Size room) {
    below_.resize(std::max(below_.size(), static_cast<std::size_t>(row + 1)));
    below_[row] = top_[room];
    top_[room] = row;
    occupied_[room / 64] |= U64{1} << room % 64;
  }

  // The least room that is at least `length`, -1 if there is none.
  Size least_room(Size length) const {
    std::size_t word = length / 64;
    U64 bits = occupied_[word] >> length % 64 << length % 64;
    while (bits == 0) {
      if (++word == occupied_.size()) return -1;
      bits = occupied_[word];
    }
    return static_cast<Size>(word) * 64 + __builtin_ctzll(bits);
  }

  Size take(Size room) {
    const Size row = top_[room];
    top_[room] = below_[row];
    if (top_[room] < 0) occupied_[room / 64] &= ~(U64{1} << room % 64);
    return row;
  }

 private:
  std::vector<Size> top_, below_;  // stacks of rows, linked
  std::vector<U64> occupied_;
};

// Document numbers by falling length, equal ones in their order.
std::vector<Size> by_falling_length(const Size* lengths, Size num_documents, Size row_length) {
  std::vector<Size> start(row_length + 2, 0), order(num_documents);
  for (Size i = 0; i < num_documents; ++i) ++start[row_length - lengths[i] + 1];
  for (Size i = 0; i <= row_length; ++i) start[i + 1] += start[i];
  for (Size i = 0; i < num_documents; ++i) order[start[row_length - lengths[i]]++] = i;
  return order;
}

}  // namespace

// `lengths` are between 1 and row_length. `documents` gets the document numbers row by row, the longest first;
// `borders`, of num_documents + 1 places, where each row begins and the last one ends. Returns the number of rows.
extern "C" Size pack(const Size* lengths, Size num_documents, Size row_length, Size* documents, Size* borders) {
  const std::vector<Size> order = by_falling_length(lengths, num_documents, row_length);
  std::vector<Size> row_of(num_documents);
  RowsByRoom rows(row_length);
  Size num_rows = 0;
  for (const Size document : order) {
    const Size length = lengths[document], found = rows.least_room(length);
    const Size room = found < 0 ? row_length : found, row = found < 0 ? num_rows++ : rows.take(room);
    row_of[document] = row;
    if (room > length) rows.put(row, room - length);
  }
  std::fill(borders, borders + num_rows + 1, 0);
  for (const Size row : row_of) ++borders[row + 1];
  for (Size row = 0; row < num_rows; ++row) borders[row + 1] += borders[row];
  std::vector<Size> next(borders, borders + num_rows);
  for (const Size document : order) documents[next[row_of[document]]++] = document;
  return num_rows;
}
