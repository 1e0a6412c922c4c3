// What work costs, where a test bounds it: on a busy machine the clock goes on while others work.

/** Starts now; what it returns tells for how many milliseconds this process has worked since then, in all its threads. */
export const startCpuTimer = (): (() => number) => {
  const before = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1000;
  };
};
