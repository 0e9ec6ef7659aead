/* A program that is kept running: tells at once that it runs, then waits for ever, or does what its
   first argument says. What it tells is one line: its name, its pid, the monotonic clock in ns. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[128];
    int length = snprintf(line, sizeof line, "%s %d %lld\n", argv[1], (int)getpid(),
                          now.tv_sec * 1000000000LL + now.tv_nsec);
    int told = open(argv[2], O_WRONLY);
    if (told < 0 || write(told, line, length) != length) return 9;
    close(told);
    if (argc > 3 && !strcmp(argv[3], "crash")) return 1;
    if (argc > 3 && !strcmp(argv[3], "flood")) {
        static char lines[65536];
        memset(lines, 'x', sizeof lines);
        for (size_t end = 99; end < sizeof lines; end += 100) lines[end] = '\n';
        while (write(1, lines, sizeof lines) > 0) {}
    }
    for (;;) pause();
}
