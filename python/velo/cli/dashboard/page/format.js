// Numbers, durations and sizes as text of a few characters.

export function number(value) {
  if (value === null || value === undefined) return "";
  for (const [most, unit] of [[1e5, ""], [1e6, "k"], [1e9, "M"], [1e12, "G"]]) {
    if (Math.abs(value) >= most) continue;
    if (!unit) return Math.round(value).toLocaleString("en");
    const shown = value / (most / 1e3);
    return `${shown >= 100 ? Math.round(shown) : shown.toPrecision(3)} ${unit}`;
  }
  return value.toExponential(1);
}

export function latency(microseconds) {
  if (microseconds === null || microseconds === undefined) return "";
  for (const [most, unit] of [[1e3, "µs"], [1e6, "ms"], [1e9, "s"]]) {
    if (microseconds >= 0.9995 * most) continue;
    const shown = (microseconds / most) * 1e3;
    return `${shown >= 99.95 ? Math.round(shown) : Number(shown.toPrecision(3))} ${unit}`;
  }
  return `${Math.round(microseconds / 1e6)} s`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.floor(seconds);
  const two = (count) => String(count).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

export function size(bytes) {
  return bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}

export function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}
