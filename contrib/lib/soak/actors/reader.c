/* Reads one file again and again, and tells what it saw: reader PATH PAUSE_MICROSECONDS
 *
 * It says {"ready": true}, reads until its standard input is closed, and then ends; a JSON document a line:
 *     {"run": CONTENT, "first": [FROM, TO], "last": [FROM, TO], "reads": N}    N reads in a row saw the same
 *     {"failed": ERRNO, "at": [FROM, TO]}                                       one did not succeed
 *     {"slow": [FROM, TO]}                                                      one took longer than SLOW seconds
 *     {"latency": [[NANOSECONDS, READS], ...]}                                  last: how many took at most that long
 * Times are seconds of CLOCK_MONOTONIC, right before and after the system calls of one read. A web server's calls are
 * open, read, close; whether what it saw is right is for others to say.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLOW 0.02
#define NAME_MAX_SEEN 63
#define STEPS 8 /* buckets of the histogram between one power of two and the next */
#define BUCKETS (64 * STEPS)

struct span {
    double from, to;
};

struct run {
    char seen[NAME_MAX_SEEN + 1];
    struct span first, last;
    long reads;
};

static long latency[BUCKETS];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Bucket b holds what takes less than 2^(b / STEPS) * (1 + (b % STEPS + 1) / STEPS) nanoseconds. */
static int bucket_of(double seconds) {
    unsigned long ns = seconds > 1e-9 ? seconds * 1e9 : 1;
    int power = 63 - __builtin_clzl(ns);
    unsigned long base = 1ul << power;
    return power * STEPS + (ns - base) * STEPS / base;
}

static double end_of(int bucket) {
    return (double)(1ul << bucket / STEPS) * (1 + (bucket % STEPS + 1.0) / STEPS);
}

/* The first word of the file; -1 with errno set. */
static int read_word(const char *path, char *seen) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, seen, NAME_MAX_SEEN);
    int wrong = errno;
    if (close(fd) < 0 && length >= 0)
        return -1;
    errno = wrong;
    if (length < 0)
        return -1;
    seen[length] = 0;
    seen[strcspn(seen, " \n\"\\")] = 0;
    return 0;
}

static void tell_run(const struct run *run) {
    if (run->reads)
        printf("{\"run\": \"%s\", \"first\": [%.9f, %.9f], \"last\": [%.9f, %.9f], \"reads\": %ld}\n", run->seen,
               run->first.from, run->first.to, run->last.from, run->last.to, run->reads);
}

static void count(struct run *run, const char *seen, struct span at) {
    if (!run->reads || strcmp(run->seen, seen)) {
        tell_run(run);
        strcpy(run->seen, seen);
        run->first = at;
        run->reads = 0;
    }
    run->last = at;
    run->reads++;
}

static void read_once(const char *path, struct run *run) {
    char seen[NAME_MAX_SEEN + 1];
    struct span at = {.from = now()};
    int wrong = read_word(path, seen) < 0 ? errno : 0;
    at.to = now();
    latency[bucket_of(at.to - at.from)]++;
    if (wrong) {
        printf("{\"failed\": \"%s\", \"at\": [%.9f, %.9f]}\n", strerrorname_np(wrong), at.from, at.to);
        fflush(stdout);
    } else {
        count(run, seen, at);
    }
    if (at.to - at.from > SLOW)
        printf("{\"slow\": [%.9f, %.9f]}\n", at.from, at.to);
}

static void tell_latency(void) {
    const char *comma = "";
    printf("{\"latency\": [");
    for (int b = 0; b < BUCKETS; b++)
        if (latency[b]) {
            printf("%s[%.0f, %ld]", comma, end_of(b), latency[b]);
            comma = ", ";
        }
    printf("]}\n");
}

/* Whether standard input was closed; waits as long as a reader is to pause. */
static int told_to_end(long pause_us) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000};
    return ppoll(&input, 1, &pause, NULL) > 0;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: reader PATH PAUSE_MICROSECONDS\n");
        return 2;
    }
    struct run run = {.reads = 0};
    read_once(argv[1], &run);
    printf("{\"ready\": true}\n");
    fflush(stdout);
    while (!told_to_end(atol(argv[2])))
        read_once(argv[1], &run);
    tell_run(&run);
    tell_latency();
    return fflush(stdout) ? 1 : 0;
}
