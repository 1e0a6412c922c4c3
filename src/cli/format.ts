// Quantities as people read them: binary sizes with three significant digits, durations, counts, aligned tables.

import { styledLine, textWidth } from './safe-text.js';

const SIZE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

const threeDigits = (value: number): string => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);

/** `512 B`, `1.50 GiB`, `1023 MiB`. */
export const formatBytes = (byteCount: number): string => {
  let value = byteCount;
  let unit = 0;
  // 1023.5 would be shown as 1024 of the smaller unit.
  while (value >= 1023.5 && unit < SIZE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : threeDigits(value)} ${SIZE_UNITS[unit]}`;
};

/** `1.50 GiB/s`. */
export const formatRate = (bytesPerSecond: number): string => `${formatBytes(bytesPerSecond)}/s`;

/** `0.42 ms`, `120 ms`, `4.20 s`, `3 min 05 s`, `2 h 03 min`. */
export const formatDuration = (milliseconds: number): string => {
  if (milliseconds < 999.5) {
    return `${threeDigits(milliseconds)} ms`;
  }
  if (milliseconds < 59_950) {
    return `${threeDigits(milliseconds / 1000)} s`;
  }
  const seconds = Math.round(milliseconds / 1000);
  const padded = (value: number): string => String(value).padStart(2, '0');
  return seconds < 3600
    ? `${Math.floor(seconds / 60)} min ${padded(seconds % 60)} s`
    : `${Math.floor(seconds / 3600)} h ${padded(Math.floor((seconds % 3600) / 60))} min`;
};

/** `1,234,567`. */
export const formatCount = (count: number): string => String(count).replace(/\B(?=(\d{3})+$)/g, ',');

/** `43 %`. Never 100 % before everything is there. */
export const formatPercent = (fraction: number): string => `${Math.floor(Math.min(1, fraction) * 100)} %`;

export type Align = 'left' | 'right';

/** Rows of equal length as lines with aligned columns, two spaces apart. A cell stays one line, whatever is in it. */
export const formatTable = (rows: readonly (readonly string[])[], align: readonly Align[]): string => {
  const cells = rows.map((row) => row.map(styledLine));
  const widths = align.map((_, column) => Math.max(0, ...cells.map((row) => textWidth(row[column] ?? ''))));
  const cell = (text: string, column: number): string => {
    const padding = ' '.repeat(widths[column]! - textWidth(text));
    return align[column] === 'right' ? padding + text : text + padding;
  };
  return cells.map((row) => `${row.map(cell).join('  ').trimEnd()}\n`).join('');
};
