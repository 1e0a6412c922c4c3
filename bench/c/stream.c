// The other end of the socket in the stream benchmarks, the same for QEMU and for us: reads a stream and throws it away,
// or writes one from memory. A child process of the benchmark; answers each line on stdin with a line of numbers.
//
//   listen SOCKET   a sink listens: 0
//   drain           accepts and reads until the end: nanoseconds from the first byte to the last, bytes
//   open FILE       maps a stream: bytes
//   send SOCKET     writes the stream: nanoseconds from the first byte until the receiver closed, which it does when it has
//                   loaded everything; bytes that it took
//   warm BYTES      takes that much memory, writes to all of it and gives it back: 0
//   keep BYTES      the same, and keeps the host from taking it back until the next call: 0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };

static char block[BLOCK];
static const char *stream;
static size_t stream_bytes;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static int unix_socket(const char *path, struct sockaddr_un *address)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    strncpy(address->sun_path, path, sizeof address->sun_path - 1);
    return check(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
}

static int listen_at(const char *path)
{
    struct sockaddr_un address;
    int listener = unix_socket(path, &address);
    unlink(path);
    check(bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
    check(listen(listener, 1), "listen");
    return listener;
}

static uint64_t drain(int listener, uint64_t *bytes)
{
    int from = check(accept(listener, NULL, NULL), "accept");
    uint64_t first = 0;
    uint64_t last = 0;
    ssize_t count;
    close(listener);
    while ((count = check(read(from, block, BLOCK), "read")) > 0) {
        last = now();
        if (first == 0) {
            first = last;
        }
        *bytes += count;
    }
    close(from);
    return last - first;
}

static void map_stream(const char *file)
{
    int descriptor = check(open(file, O_RDONLY), file);
    struct stat stat;
    check(fstat(descriptor, &stat), file);
    if (stream != NULL) {
        munmap((void *)stream, stream_bytes);
    }
    stream_bytes = stat.st_size;
    // Populated: page faults are no part of sending.
    stream = mmap(NULL, stream_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, descriptor, 0);
    check(stream == MAP_FAILED ? -1 : 0, "mmap");
    close(descriptor);
}

static void warm(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory == MAP_FAILED ? -1 : 0, "mmap");
    madvise(memory, bytes, MADV_HUGEPAGE);
    for (size_t at = 0; at < bytes; at += 4096) {
        memory[at] = 1;
    }
    munmap(memory, bytes);
}

/*
 * A host takes free memory back in pieces of some size, and none that is in use in part: a page of every 16 stays here. What
 * becomes free later, file pages above all, joins no larger pieces either.
 */
static void keep(size_t bytes)
{
    static char *kept;
    static size_t kept_bytes;
    char *memory = NULL;
    if (bytes > 0) {
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(memory == MAP_FAILED ? -1 : 0, "mmap");
        madvise(memory, bytes, MADV_NOHUGEPAGE);
        for (size_t at = 0; at < bytes; at += 4096) {
            memory[at] = 1;
        }
        for (size_t at = 4096; at + 15 * 4096 <= bytes; at += 16 * 4096) {
            madvise(memory + at, 15 * 4096, MADV_DONTNEED);
        }
    }
    if (kept != NULL) {
        munmap(kept, kept_bytes);
    }
    kept = memory;
    kept_bytes = bytes;
}

static uint64_t send_stream(const char *path, uint64_t *bytes)
{
    struct sockaddr_un address;
    int to = unix_socket(path, &address);
    check(connect(to, (struct sockaddr *)&address, sizeof address), path);
    uint64_t started = now();
    while (*bytes < stream_bytes) {
        size_t left = stream_bytes - *bytes;
        ssize_t count = write(to, stream + *bytes, left < BLOCK ? left : BLOCK);
        if (count < 0) {
            // A receiver that gives up says so itself; the benchmark compares the bytes.
            break;
        }
        *bytes += count;
    }
    shutdown(to, SHUT_WR);
    while (read(to, block, BLOCK) > 0) {
    }
    uint64_t took = now() - started;
    close(to);
    return took;
}

int main(void)
{
    char line[1024];
    int listener = -1;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    while (fgets(line, sizeof line, stdin)) {
        char *argument = strchr(line, ' ');
        uint64_t took = 0;
        uint64_t bytes = 0;
        line[strcspn(line, "\n")] = 0;
        if (argument != NULL) {
            *argument++ = 0;
        }
        if (!strcmp(line, "listen")) {
            listener = listen_at(argument);
            puts("0");
        } else if (!strcmp(line, "drain")) {
            took = drain(listener, &bytes);
            printf("%llu %llu\n", (unsigned long long)took, (unsigned long long)bytes);
        } else if (!strcmp(line, "open")) {
            map_stream(argument);
            printf("%zu\n", stream_bytes);
        } else if (!strcmp(line, "send")) {
            took = send_stream(argument, &bytes);
            printf("%llu %llu\n", (unsigned long long)took, (unsigned long long)bytes);
        } else if (!strcmp(line, "warm")) {
            warm(strtoull(argument, NULL, 10));
            puts("0");
        } else if (!strcmp(line, "keep")) {
            keep(strtoull(argument, NULL, 10));
            puts("0");
        } else {
            return 2;
        }
        fflush(stdout);
    }
    return 0;
}
