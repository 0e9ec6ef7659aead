/* Tells that it is here, waits at a FIFO until somebody opens it, writes lines of 100 bytes to stdout, and
   tells how long that took in ns: writer GATE TOLD BYTES CHUNK RATE, the rate in bytes a second, or 0 for all that goes. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 6) return 9;
    long long bytes = atoll(argv[3]), chunk = atoll(argv[4]), rate = atoll(argv[5]);
    char *lines = malloc(chunk);
    memset(lines, 'x', chunk);
    for (long long end = 99; end < chunk; end += 100) lines[end] = '\n';
    int told = open(argv[2], O_WRONLY);
    if (told < 0 || write(told, "here\n", 5) != 5) return 6;
    int gate = open(argv[1], O_RDONLY);
    if (gate < 0) return 8;
    long long begun = now();
    for (long long written = 0; written < bytes;) {
        ssize_t n = write(1, lines, chunk);
        if (n < 0) return 7;
        written += n;
        if (rate > 0) {
            long long ahead = begun + written * 1000000000LL / rate - now();
            struct timespec pause = {ahead / 1000000000LL, ahead % 1000000000LL};
            if (ahead > 0) nanosleep(&pause, NULL);
        }
    }
    char line[64];
    int length = snprintf(line, sizeof line, "%lld\n", now() - begun);
    if (write(told, line, length) != length) return 6;
    return 0;
}
