/* The least that a supervisor can do: starts N copies of a program with their numbers, and starts each
   that ends again. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

extern char **environ;
static char *program, *fifo;

static pid_t start(int number) {
    char name[16];
    snprintf(name, sizeof name, "a%d", number);
    char *args[] = {program, name, fifo, NULL};
    pid_t pid;
    if (posix_spawn(&pid, program, NULL, NULL, args, environ)) exit(1);
    return pid;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int count = atoi(argv[1]);
    program = argv[2];
    fifo = argv[3];
    pid_t *pids = calloc(count, sizeof *pids);
    for (int i = 0; i < count; i++) pids[i] = start(i);
    for (;;) {
        pid_t ended = wait(NULL);
        if (ended < 0) return 1;
        for (int i = 0; i < count; i++)
            if (pids[i] == ended) {
                pids[i] = start(i);
                break;
            }
    }
}
