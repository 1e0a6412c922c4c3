// Trace events with QEMU's names and arguments. A listener is a property of the `Trace` object; an event nobody listens
// to is a call on an absent property, `trace.name?.(…)`, which does not even evaluate its arguments.

/** Arguments by QEMU's meaning: sizes in bytes, times in milliseconds unless said. spec/algorithms.md 2(h), 7.21. */
export interface TraceEvents {
  migrate_set_state: (state: string) => void;
  migration_bitmap_sync_start: () => void;
  /** `dirtyPages`: pages newly dirty since the period began. */
  migration_bitmap_sync_end: (dirtyPages: number) => void;
  /** One debt paid: the chunk's first byte and its size, and the page whose sending made it due. */
  migration_bitmap_clear_dirty: (block: string, start: number, size: number, page: number) => void;
  migrate_pending_estimate: (size: number, mustPrecopy: number, canPostcopy: number) => void;
  migrate_pending_exact: (size: number, mustPrecopy: number, canPostcopy: number) => void;
  /** A window closed: bytes, its length, bytes per millisecond measured and expected at the switchover, the threshold. */
  migrate_transferred: (
    transferred: number,
    timeSpent: number,
    bandwidth: number,
    availBandwidth: number,
    threshold: number,
  ) => void;
  migration_thread_setup_complete: () => void;
  migration_thread_low_pending: (pending: number) => void;
  migration_rate_limit_pre: (milliseconds: number) => void;
  migration_rate_limit_post: (urgent: number) => void;
  /** An iteration was cut because it took longer than 50 ms. */
  ram_save_iterate_big_wait: (milliseconds: number, batches: number) => void;
  /** Hints are asked for under a new id. QEMU has no events for hints; these are ours (spec/algorithms.md 3(h)). */
  free_page_hint_request: () => void;
  /** A hint was applied: first page, pages, and how many of them were still to be sent. */
  free_page_hint_range: (block: string, first: number, pages: number, honoured: number) => void;
  /** No more hints until the next request; pages hinted and honoured so far. */
  free_page_hint_stop: (pages: number, honoured: number) => void;
  savevm_section_start: (idstr: string, sectionId: number) => void;
  savevm_section_end: (idstr: string, sectionId: number, result: number) => void;
  migration_throttle: () => void;
  cpu_throttle_set: (percentage: number) => void;
  vmstate_downtime_checkpoint: (checkpoint: string) => void;
  source_return_path_thread_pong: (value: number) => void;
  source_return_path_thread_shut: (value: number) => void;
  migration_completion_file_err: () => void;
  migration_cancel: () => void;
  migrate_error: (description: string) => void;
  migration_cleanup: () => void;
}

export type TraceName = keyof TraceEvents;
export type Trace = { [Name in TraceName]?: TraceEvents[Name] };

/** Every event there is, with the names of its arguments: what `--trace` can match and how it is printed. */
export const traceArguments: Readonly<Record<TraceName, readonly string[]>> = {
  migrate_set_state: ['new_state'],
  migration_bitmap_sync_start: [],
  migration_bitmap_sync_end: ['dirty_pages'],
  migration_bitmap_clear_dirty: ['rb', 'start', 'size', 'page'],
  migrate_pending_estimate: ['size', 'must_precopy', 'can_postcopy'],
  migrate_pending_exact: ['size', 'must_precopy', 'can_postcopy'],
  migrate_transferred: ['transferred', 'time_spent', 'bandwidth', 'avail_bandwidth', 'threshold'],
  migration_thread_setup_complete: [],
  migration_thread_low_pending: ['pending'],
  migration_rate_limit_pre: ['ms'],
  migration_rate_limit_post: ['urgent'],
  ram_save_iterate_big_wait: ['ms', 'batches'],
  free_page_hint_request: [],
  free_page_hint_range: ['rb', 'first', 'pages', 'honoured'],
  free_page_hint_stop: ['pages', 'honoured'],
  savevm_section_start: ['idstr', 'section_id'],
  savevm_section_end: ['idstr', 'section_id', 'ret'],
  migration_throttle: [],
  cpu_throttle_set: ['percentage'],
  vmstate_downtime_checkpoint: ['checkpoint'],
  source_return_path_thread_pong: ['val'],
  source_return_path_thread_shut: ['val'],
  migration_completion_file_err: [],
  migration_cancel: [],
  migrate_error: ['error_desc'],
  migration_cleanup: [],
};

/**
 * A trace that hands the events matching `pattern` to `listener`. The pattern is QEMU's `-trace` glob: `*` stands for
 * any characters, and several patterns may be joined by commas.
 */
export function createTrace(
  pattern: string,
  listener: (name: TraceName, values: readonly (string | number)[]) => void,
): Trace {
  const globs = pattern.split(',').map(
    (glob) =>
      new RegExp(
        `^${glob
          .trim()
          .replace(/[.+?^${}()|[\]\\]/g, '\\$&')
          .replace(/\*/g, '.*')}$`,
      ),
  );
  const trace: Trace = {};
  for (const name of Object.keys(traceArguments) as TraceName[]) {
    if (globs.some((glob) => glob.test(name))) {
      trace[name] = (...values: (string | number)[]) => listener(name, values);
    }
  }
  return trace;
}
