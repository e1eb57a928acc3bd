/** Numbers derived from scores. No score (null) is never taken for a number. */

/** @param {number} i place of a response */
export const letter = (i) => String.fromCharCode(65 + i);

/** All pairs of places below `num`, the lower one first. */
export function pairs(num) {
  const places = [];
  for (let i = 0; i < num; i++) for (let j = i + 1; j < num; j++) places.push([i, j]);
  return places;
}

/**
 * How two models order the same responses.
 *
 *     tau_b = (alike - opposite) / sqrt((n - ties of a) (n - ties of b))
 *
 * over the n pairs that both scored (Kendall 1945); null where a model ties them all.
 * @param {(number|null)[]} a scores of one model
 * @param {(number|null)[]} b of the other
 */
export function agreement(a, b) {
  const counts = { alike: 0, opposite: 0, tied: 0, missing: 0, tau: null };
  let tiesA = 0;
  let tiesB = 0;
  for (const [i, j] of pairs(a.length)) {
    if ([a[i], a[j], b[i], b[j]].includes(null)) {
      counts.missing++;
      continue;
    }
    const signA = Math.sign(a[i] - a[j]);
    const signB = Math.sign(b[i] - b[j]);
    tiesA += signA === 0;
    tiesB += signB === 0;
    counts[signA * signB === 0 ? "tied" : signA === signB ? "alike" : "opposite"]++;
  }
  const n = counts.alike + counts.opposite + counts.tied;
  const scale = Math.sqrt((n - tiesA) * (n - tiesB));
  if (scale > 0) counts.tau = (counts.alike - counts.opposite) / scale;
  return counts;
}

/** Rank of each score, 1 the highest; equal scores share a rank, and null has none. */
export const ranks = (scores) =>
  scores.map((score) => {
    const above = scores.filter((other) => other !== null && other > score);
    return score === null ? null : 1 + above.length;
  });

/** Places with a score, the best first; equal ones in their own order. */
export const ordered = (scores) =>
  [...scores.keys()].filter((i) => scores[i] !== null).sort((i, j) => scores[j] - scores[i]);

/** A ranking in letters: `B > A = C`. */
export const ranking = (scores) =>
  ordered(scores).reduce((text, i, at, all) => {
    const sign = scores[all[at - 1]] === scores[i] ? " = " : " > ";
    return text + (at ? sign : "") + letter(i);
  }, "");

/** Decimals that give the largest of some numbers three digits. */
export function decimals(values) {
  const most = Math.max(...values.map(Math.abs), 1e-6);
  return Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(most))));
}

/** Decimals, at least three, that show different scores as different where six can. */
export function scoreDecimals(scores) {
  const distinct = [...new Set(scores)];
  const numDistinct = (n) => new Set(distinct.map((score) => score.toFixed(n))).size;
  return [3, 4, 5].find((n) => numDistinct(n) === distinct.length) ?? 6;
}

/** A number with its sign. */
export const signed = (value, n) => (value > 0 ? "+" : "") + value.toFixed(n);

/**
 * The ends of an objective's scale, and whether they are the source's own.
 * Without them the scale reaches from 0 over the values.
 */
export function scaleOf(objective, values) {
  const { low = null, high = null } = objective ?? {};
  if (low !== null && high !== null && low < high) return { low, high, known: true };
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  return { low: least, high: most > least ? most : least + 1, known: false };
}

/** What a reader has to know of some predicted ratings and their scale; "" where nothing. */
export function scaleNote(values, { low, high, known }) {
  if (!known) return "no known scale";
  const slack = 1e-6 * Math.max(Math.abs(low), Math.abs(high)); // float32 rounding
  const beyond = values.some((value) => value < low - slack || value > high + slack);
  return beyond ? `beyond its scale ${low}..${high}` : "";
}

/**
 * Why one response got more than another: the difference of each objective's contribution, the
 * largest first. An objective that lacks one of the two is left out.
 */
export function differences(first, second) {
  const other = new Map(second.map((driver) => [driver.objective, driver]));
  return first
    .filter(({ objective }) => other.has(objective))
    .map(({ objective, value, contribution }) => ({
      objective,
      values: [value, other.get(objective).value],
      moved: contribution - other.get(objective).contribution,
    }))
    .sort((a, b) => Math.abs(b.moved) - Math.abs(a.moved));
}
