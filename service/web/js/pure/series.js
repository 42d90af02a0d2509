// The steps of a training run, as columns. A long run is thinned: beyond `limit` points every second one goes, and from
// then on only every second, fourth, … step is kept. The newest step is always there.

export class Series {
  constructor(limit = 2000) {
    this.limit = limit;
    this.stride = 1;
    this.points = [];
    this.newest = null;
  }

  get length() {
    return this.rows().length;
  }

  // A restarted run takes steps again that it had taken before: the last word counts.
  add(point) {
    while (this.points.length && this.points.at(-1).step >= point.step) this.points.pop();
    this.newest = point;
    if ((point.step - 1) % this.stride === 0) this.points.push(point);
    if (this.points.length > this.limit) {
      this.stride *= 2;
      this.points = this.points.filter((kept) => (kept.step - 1) % this.stride === 0);
    }
  }

  rows() {
    const isKept = !this.newest || this.points.at(-1) === this.newest;
    return isKept ? this.points : [...this.points, this.newest];
  }

  column(read) {
    return this.rows().map((point) => read(point) ?? null);
  }
}

// At most `count` of the items, evenly spread, the first and the last among them.
export function spread(items, count) {
  if (items.length <= count) return [...items];
  if (count === 1) return [items.at(-1)];
  return Array.from({ length: count }, (_, place) => items[Math.round((place * (items.length - 1)) / (count - 1))]);
}

// The running mean of what is known: `weight` of each value goes on to the next. Without bias at the start.
export function smoothed(values, weight = 0.9) {
  let [mean, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}
