/* Times the resolution of two paths against each other: resolve ROUNDS CALLS PATH PATH
 *
 * A line a round: the nanoseconds of one stat(2) of each path, then of one open+read+close of each. The two take
 * turns at going first, so that what disturbs the machine disturbs both. What the numbers mean is not decided here.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void give_up(const char *path) {
    perror(path);
    exit(1);
}

static double time_stat(const char *path, int calls) {
    struct stat st;
    double start = now();
    for (int i = 0; i < calls; i++)
        if (stat(path, &st) < 0)
            give_up(path);
    return (now() - start) / calls;
}

static double time_read(const char *path, int calls) {
    char buffer[64];
    double start = now();
    for (int i = 0; i < calls; i++) {
        int fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, buffer, sizeof buffer) <= 0 || close(fd) < 0)
            give_up(path);
    }
    return (now() - start) / calls;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: resolve ROUNDS CALLS PATH PATH\n");
        return 2;
    }
    int rounds = atoi(argv[1]), calls = atoi(argv[2]);
    double (*const timers[2])(const char *, int) = {time_stat, time_read};
    for (int round = 0; round < rounds; round++) {
        double ns[2][2];
        for (int what = 0; what < 2; what++)
            for (int turn = 0; turn < 2; turn++) {
                int which = (turn + round) % 2;
                ns[what][which] = timers[what](argv[3 + which], calls);
            }
        printf("%.1f %.1f %.1f %.1f\n", ns[0][0], ns[0][1], ns[1][0], ns[1][1]);
    }
    return 0;
}
