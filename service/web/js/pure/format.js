// Numbers, times and words as the page shows them. What is not known is an en dash.

export const UNKNOWN = "–";

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// A narrow no-break space between thousands: digits stay aligned, and no locale changes them.
const grouped = (text) => text.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");

export function integer(value) {
  if (!known(value)) return UNKNOWN;
  return (value < 0 ? "−" : "") + grouped(String(Math.abs(Math.round(value))));
}

export function decimal(value, digits = 3) {
  if (!known(value)) return UNKNOWN;
  const [whole, rest] = Math.abs(value).toFixed(digits).split(".");
  const sign = value < 0 && Number(Math.abs(value).toFixed(digits)) !== 0 ? "−" : "";
  return sign + grouped(whole) + (rest ? `.${rest}` : "");
}

// Three significant digits, whatever the size: 2.00e-5, 0.00412, 8.37, 5 310.
export function significant(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("-", "−").replace("e+", "e");
  return size >= 100 ? integer(value) : decimal(value, Math.max(0, 2 - Math.floor(Math.log10(size))));
}

export function percent(share, digits = 1) {
  return known(share) ? `${decimal(100 * share, digits)} %` : UNKNOWN;
}

export function signedPercent(share, digits = 1) {
  if (!known(share)) return UNKNOWN;
  return (share > 0 ? "+" : "") + percent(share, digits);
}

// 45 s below two minutes, then 2:05 and 1:02:05.
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 10) return `${decimal(seconds, 1)} s`;
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

export function bytes(count) {
  if (!known(count)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const place = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** place;
  return `${place ? decimal(value, value < 10 ? 2 : value < 100 ? 1 : 0) : integer(value)} ${units[place]}`;
}

// An estimate with its standard error, in per cent.
export function estimate(found, digits = 1) {
  if (!found) return UNKNOWN;
  return signedPercent(found.value, digits) + (known(found.noise) ? ` ± ${decimal(100 * found.noise, digits)}` : "");
}

// The same in a column that says that it is in per cent: ["+1.3", "± 2.1"].
export function estimateParts(found) {
  if (!found) return [UNKNOWN, ""];
  const noise = known(found.noise) ? `± ${decimal(100 * found.noise, 1)}` : "";
  return [signedPercent(found.value).replace(" %", ""), noise];
}

// 2026-11-26 06:29, in the reader's zone; the same width for every row.
export function moment(time) {
  if (!time) return UNKNOWN;
  const at = new Date(time);
  const two = (number) => String(number).padStart(2, "0");
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

export function secondsBetween(start, end) {
  return start ? Math.max(0, (new Date(end ?? Date.now()) - new Date(start)) / 1000) : null;
}

// `near_duplicates` as "near duplicates".
export const words = (name) => String(name).replaceAll("_", " ");

// "1 trial", "5 trials".
export const counted = (count, noun) => `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;
