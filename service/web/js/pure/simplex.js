// Where mixes lie: in a triangle, for three categories, or as lines over parallel axes, for any number.

// The corners of a triangle of side 1, the first on the left, the second on the right, the third on top; y points down.
export const HEIGHT = Math.sqrt(3) / 2;
export const CORNERS = [[0, HEIGHT], [1, HEIGHT], [0.5, 0]]; // prettier-ignore

// The point of three shares: the mean of the corners by their weights. Shares that do not sum to 1 are scaled.
export function inTriangle(shares) {
  const total = shares.reduce((sum, share) => sum + share, 0);
  return [0, 1].map((axis) => shares.reduce((sum, share, place) => sum + share * CORNERS[place][axis], 0) / total);
}

// The line on which the share of the category at `place` is `share`, from one side of the triangle to another.
export function triangleLine(place, share) {
  const others = [0, 1, 2].filter((other) => other !== place);
  return others.map((other) => inTriangle([0, 1, 2].map((at) => (at === place ? share : at === other ? 1 - share : 0))));
}

// Points of a mix on as many axes as there are categories, spread from 0 to 1; a whole share lies on top.
export function onAxes(shares) {
  const step = shares.length > 1 ? 1 / (shares.length - 1) : 0;
  return shares.map((share, place) => [place * step, 1 - share]);
}

// The largest share that any mix has, rounded up to a tenth: where axes may end.
export function largestShare(mixtures) {
  const largest = Math.max(0, ...mixtures.flatMap((mixture) => Object.values(mixture)));
  return Math.min(1, Math.max(0.1, Math.ceil(largest * 10 - 1e-9) / 10));
}
