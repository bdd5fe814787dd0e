// How big a model is: the number of parameters that its name tells.

/** Billions of parameters by a name such as qwen3-30b-a3b, mixtral-8x7b or smollm-135m; 0 where it tells none. */
export function parameters(...names: (string | undefined)[]): number {
  for (const name of names) {
    const all = [...(name ?? "").matchAll(/(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])/gi)];
    const sizes = all.map(([, times, number, unit]) => Number(times ?? 1) * Number(number) * (unit?.toLowerCase() === "m" ? 0.001 : 1));
    // Of several the largest is the whole; the others are what is active at a time, or a draft's.
    if (sizes.length) return Math.max(...sizes);
  }
  return 0;
}

/** For sorting only: four bits and a bit more for each parameter come near to what a model takes. */
export const weight = (mb: number, billions: number): number => mb || billions * 600;

export const sizeText = (billions: number): string =>
  billions ? (billions >= 1 ? `${+billions.toFixed(1)}B` : `${Math.round(billions * 1000)}M`) : "–";
