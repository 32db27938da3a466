/* Times system calls in a directory: calls DIRECTORY COUNT MEGABYTES
 *
 * A line a measurement: its name, and the nanoseconds of one call, or of one MiB. The directory was prepared by
 * somebody who went another way, so that whoever serves it has not been asked for anything in it: `first` and `many`
 * with COUNT files called 0, 1, 2 ..., `large` and `random` of MEGABYTES. What is made here is removed here, as one
 * of the measurements. What the numbers mean is not decided here.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILE_SIZE 4096
#define BLOCK 131072
#define MIB 1048576

static char block[BLOCK];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static long must(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static const char *name(const char *prefix, int number) {
    static char names[2][64];
    static int turn;
    turn = !turn;
    snprintf(names[turn], sizeof names[turn], "%s%d", prefix, number);
    return names[turn];
}

/* ---- one call each */

static void create_file(int i) {
    int fd = must(open(name("f", i), O_CREAT | O_EXCL | O_WRONLY, 0644), "create");
    must(write(fd, block, FILE_SIZE), "write");
    must(close(fd), "close");
}

static void read_file(int i) {
    int fd = must(open(name("f", i), O_RDONLY), "open");
    must(read(fd, block, BLOCK), "read");
    must(close(fd), "close");
}

static void stat_first(int i) {
    struct stat st;
    must(stat(name("first/", i), &st), "stat");
}

static void stat_again(int i) {
    struct stat st;
    (void)i;
    must(stat("first/0", &st), "stat");
}

static void stat_missing(int i) {
    struct stat st;
    (void)i;
    if (stat("first/missing", &st) == 0)
        must(-1, "first/missing is there");
}

static void rename_file(int i) { must(rename(name("f", i), name("r", i)), "rename"); }
static void unlink_file(int i) { must(unlink(name("r", i)), "unlink"); }
static void make_link(int i) { must(symlink("first/0", name("l", i)), "symlink"); }
static void read_link(int i) { must(readlink(name("l", i), block, BLOCK), "readlink"); }
static void unlink_link(int i) { must(unlink(name("l", i)), "unlink"); }
static void make_directory(int i) { must(mkdir(name("d", i), 0755), "mkdir"); }
static void remove_directory(int i) { must(rmdir(name("d", i)), "rmdir"); }

/* ---- many of them */

static void measure(const char *what, int count, void (*call)(int)) {
    double start = now();
    for (int i = 0; i < count; i++)
        call(i);
    printf("%s\t%.1f\n", what, (now() - start) / count);
}

static void measure_readdir(void) {
    double start = now();
    long entries = 0;
    DIR *directory = opendir("many");
    if (directory == NULL)
        must(-1, "opendir");
    while (readdir(directory) != NULL)
        entries++;
    closedir(directory);
    printf("readdir, an entry\t%.1f\n", (now() - start) / entries);
}

static void measure_write(int megabytes) {
    double start = now();
    int fd = must(open("written", O_CREAT | O_EXCL | O_WRONLY, 0644), "create");
    for (long at = 0; at < (long)megabytes * MIB; at += BLOCK)
        must(write(fd, block, BLOCK), "write");
    must(close(fd), "close");
    printf("write\t%.1f\n", (now() - start) / megabytes);
    must(unlink("written"), "unlink");
}

static void measure_read(const char *what, int megabytes) {
    double start = now();
    int fd = must(open("large", O_RDONLY), "open");
    while (must(read(fd, block, BLOCK), "read") > 0)
        ;
    must(close(fd), "close");
    printf("%s\t%.1f\n", what, (now() - start) / megabytes);
}

/* Each page at most once, in an order that no readahead guesses: a step that shares no factor with a power of two. */
static void measure_random(int count, int megabytes) {
    long pages = (long)megabytes * MIB / FILE_SIZE, page = 0;
    long reads = count < pages ? count : pages;
    int fd = must(open("random", O_RDONLY), "open");
    must(-posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), "posix_fadvise");
    double start = now();
    for (long i = 0; i < reads; i++) {
        page = (page + 7919) % pages;
        must(pread(fd, block, FILE_SIZE, page * FILE_SIZE), "pread");
    }
    printf("random read of 4 KiB\t%.1f\n", (now() - start) / reads);
    must(close(fd), "close");
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: calls DIRECTORY COUNT MEGABYTES\n");
        return 2;
    }
    int count = atoi(argv[2]), megabytes = atoi(argv[3]);
    must(chdir(argv[1]), argv[1]);
    measure("create+write+close", count, create_file);
    measure("open+read+close", count, read_file);
    measure("stat, first time", count, stat_first);
    measure("stat, again", count * 10, stat_again);
    measure("stat, no such name", count, stat_missing);
    measure_readdir();
    measure("rename", count, rename_file);
    measure("unlink", count, unlink_file);
    measure("symlink", count, make_link);
    measure("readlink", count, read_link);
    for (int i = 0; i < count; i++)
        unlink_link(i);
    measure("mkdir", count, make_directory);
    measure("rmdir", count, remove_directory);
    measure_write(megabytes);
    measure_read("read, first time", megabytes);
    measure_read("read, again", megabytes);
    measure_random(count, megabytes);
    return 0;
}
