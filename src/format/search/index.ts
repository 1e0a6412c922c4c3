// Search through a guest's memory (package subpath `ramferry/format/search`): for bytes, for text in the usual encodings, and for
// regular expressions over bytes.

export { LiteralMatcher } from './literal-matcher.js';
export type { Matcher } from './matcher.js';
export { type Match, MemorySearch, type SearchOptions } from './memory-search.js';
export { hexNeedle, type Needle, TEXT_ENCODINGS, type TextEncoding, textNeedles } from './needle.js';
export { RegexMatcher } from './regex-matcher.js';
export { LONGEST_MATCH, SearchMemory } from './search-memory.js';
export { type MemoryPlace, memoryStretches, type Stretch } from './stretches.js';
export { TextMatcher } from './text-matcher.js';
