// Which colour a load has: below an even one towards `low`, above it towards `high`.

export const LEGEND_RATIOS = [0.25, 0.5, 1, 2, 4];
const LARGEST = Math.log2(4);

// {side, strength}: strength from 0, even, to 1, a factor of four or more.
export function heat(ratio) {
  const distance = ratio > 0 ? Math.log2(ratio) / LARGEST : -1;
  return { side: distance < 0 ? "low" : "high", strength: Math.min(1, Math.abs(distance)) };
}

// Copies by layer and expert as ratios to an even load; a layer without copies is even.
export function ratios(copies) {
  return copies.map((layer) => {
    const total = layer.reduce((sum, count) => sum + count, 0);
    return layer.map((count) => (total ? (count * layer.length) / total : 1));
  });
}

// Sums of tables of the same shape.
export function sum(tables) {
  return tables[0].map((layer, y) => layer.map((_, x) => tables.reduce((total, table) => total + table[y][x], 0)));
}
