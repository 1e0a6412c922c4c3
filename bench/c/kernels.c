// The C twin of the kernels: what a compiler with -O3 -march=native makes of the same loops. A child process of the
// benchmark: prepares its memory once, then for every line on stdin runs the named loop once and answers with a line of
// the time in nanoseconds and a checksum, which the benchmark compares with ours.
//
//   MEGABYTES of RAM   argument 1
//   sync-clean | sync-sparse | sync-full | count | zero | emit | load     commands
//
// Loops are written the plain way that QEMU writes them (a word at a time, a page at a time) where that is the fastest,
// and otherwise as fast as we could make them: sync skips clean stretches of 128 bytes as ours does.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, BITMAP_BYTES = 32 << 20, STAGING_BYTES = 1 << 20, BATCH = 224 };

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void *allocate(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return p;
}

// xorshift32, the same as in bench/kernels.ts, so that both sides work on the same bits.
static uint32_t random_state;
static uint32_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void fill_bitmap(uint32_t *words, int percent)
{
    random_state = 1;
    for (size_t i = 0; i < BITMAP_BYTES / 4; i += 2) {
        words[i] = words[i + 1] = 0;
        if (percent == 100) {
            words[i] = words[i + 1] = ~0u;
        } else if (percent > 0) {
            uint32_t r = next_random();
            if (r % 100 < (uint32_t)percent) {
                words[i + (r >> 31)] = 1u << ((r >> 26) & 31);
            }
        }
    }
}

static inline int is_clear(const uint64_t *p)
{
    uint64_t bits = 0;
    for (int i = 0; i < 16; i++) {
        bits |= p[i];
    }
    return bits == 0;
}

__attribute__((noinline)) static uint64_t sync_bitmap(uint64_t *source, uint64_t *target, size_t words)
{
    uint64_t fresh = 0;
    for (size_t i = 0; i < words; i += 16) {
        if (is_clear(source + i)) {
            continue;
        }
        for (size_t k = i; k < i + 16; k++) {
            if (source[k]) {
                uint64_t moved = __atomic_exchange_n(&source[k], 0, __ATOMIC_SEQ_CST);
                uint64_t before = target[k];
                target[k] = before | moved;
                fresh += __builtin_popcountll(moved & ~before);
            }
        }
    }
    return fresh;
}

__attribute__((noinline)) static uint64_t count(const uint64_t *bitmap, size_t words)
{
    uint64_t set = 0;
    for (size_t i = 0; i < words; i++) {
        set += __builtin_popcountll(bitmap[i]);
    }
    return set;
}

static inline int is_zero_page(const uint8_t *page)
{
    const uint64_t *words = (const uint64_t *)page;
    for (int i = 0; i < PAGE / 8; i += 32) {
        uint64_t bits = 0;
        for (int k = 0; k < 32; k++) {
            bits |= words[i + k];
        }
        if (bits) {
            return 0;
        }
    }
    return 1;
}

// Records of up to BATCH pages go to the staging block again and again, as toward a socket.
__attribute__((noinline)) static uint64_t emit(const uint8_t *ram, size_t pages, uint8_t *staging)
{
    uint64_t bytes = 0;
    for (size_t first = 0; first < pages; first += BATCH) {
        uint8_t *out = staging;
        for (size_t page = first; page < first + BATCH && page < pages; page++) {
            const uint8_t *from = ram + page * PAGE;
            int zero = is_zero_page(from);
            uint64_t head = __builtin_bswap64(page * PAGE | (zero ? 0x22 : 0x28));
            memcpy(out, &head, 8);
            out += 8;
            if (zero) {
                *out++ = 0;
            } else {
                memcpy(out, from, PAGE);
                out += PAGE;
            }
        }
        bytes += out - staging;
    }
    return bytes;
}

// One staging block of records for pages 0..BATCH-1 goes to every BATCH pages of RAM in turn.
__attribute__((noinline)) static uint64_t load(uint8_t *ram, size_t pages, const uint8_t *staging, size_t length, uint32_t *written)
{
    uint64_t normal = 0;
    for (size_t first = 0; first + BATCH <= pages; first += BATCH) {
        for (size_t at = 0; length - at >= 8;) {
            uint64_t head;
            memcpy(&head, staging + at, 8);
            head = __builtin_bswap64(head);
            size_t page = head >> 12;
            unsigned flags = head & 0xfff;
            if ((flags != 0x22 && flags != 0x28) || page >= BATCH) {
                return 0;
            }
            uint8_t *to = ram + (first + page) * PAGE;
            uint32_t *word = &written[(first + page) / 32];
            uint32_t bit = 1u << ((first + page) % 32);
            if (flags == 0x28) {
                if (length - at < 8 + PAGE) {
                    break;
                }
                memcpy(to, staging + at + 8, PAGE);
                if (!(*word & bit)) {
                    __atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST);
                }
                normal++;
                at += 8 + PAGE;
            } else {
                if (length - at < 9) {
                    break;
                }
                if (*word & bit) {
                    memset(to, 0, PAGE);
                }
                at += 9;
            }
        }
    }
    return normal;
}

int main(int argc, char **argv)
{
    size_t ram_bytes = (size_t)(argc > 1 ? atoi(argv[1]) : 512) << 20;
    size_t pages = ram_bytes / PAGE;
    size_t words = BITMAP_BYTES / 8;
    uint8_t *ram = allocate(ram_bytes);
    uint8_t *staging = allocate(STAGING_BYTES);
    uint64_t *source = allocate(BITMAP_BYTES);
    uint64_t *target = allocate(BITMAP_BYTES);
    uint32_t *written = allocate(pages / 8);
    char line[64];

    while (fgets(line, sizeof line, stdin)) {
        uint64_t started = 0;
        uint64_t check = 0;
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "sync-", 5)) {
            fill_bitmap((uint32_t *)source, !strcmp(line, "sync-clean") ? 0 : !strcmp(line, "sync-full") ? 100 : 3);
            memset(target, 0, BITMAP_BYTES);
            started = now();
            check = sync_bitmap(source, target, words);
        } else if (!strcmp(line, "count")) {
            fill_bitmap((uint32_t *)source, 3);
            started = now();
            check = count(source, words);
        } else if (!strcmp(line, "zero")) {
            memset(ram, 0, ram_bytes);
            started = now();
            for (size_t i = 0; i < pages; i++) {
                check += is_zero_page(ram + i * PAGE);
            }
        } else if (!strcmp(line, "emit")) {
            // Two of five pages are zero.
            for (size_t i = 0; i < pages; i++) {
                memset(ram + i * PAGE, i % 5 < 2 ? 0 : 0x55, PAGE);
            }
            started = now();
            check = emit(ram, pages, staging);
        } else if (!strcmp(line, "load")) {
            for (size_t i = 0; i < BATCH; i++) {
                memset(ram + i * PAGE, i % 5 < 2 ? 0 : 0x55, PAGE);
            }
            size_t length = emit(ram, BATCH, staging);
            memset(written, 0, pages / 8);
            memset(ram, 0, ram_bytes);
            started = now();
            check = load(ram, pages, staging, length, written);
        } else {
            return 2;
        }
        uint64_t took = now() - started;
        printf("%llu %llu\n", (unsigned long long)took, (unsigned long long)check);
        fflush(stdout);
    }
    return 0;
}
