/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over files and folders of them, without libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static size_t n_inputs;

static int run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(1 << 20);
    size_t len;

    if (!f || !data) {
        perror(path);
        free(data);
        if (f)
            fclose(f);
        return 1;
    }
    len = fread(data, 1, 1 << 20, f);
    fclose(f);
    /* a copy of the exact length, so that a read beyond it is seen */
    uint8_t *exact = malloc(len ? len : 1);

    for (size_t i = 0; exact && i < len; i++)
        exact[i] = data[i];
    free(data);
    if (exact)
        LLVMFuzzerTestOneInput(exact, len);
    free(exact);
    n_inputs++;
    return 0;
}

static int run_path(const char *path)
{
    struct stat st;
    struct dirent *e;
    char child[4096];
    int r = 0;
    DIR *d;

    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
        return run_file(path);
    d = opendir(path);
    if (!d) {
        perror(path);
        return 1;
    }
    while ((e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(child, sizeof(child), "%s/%s", path, e->d_name);
        r |= run_path(child);
    }
    closedir(d);
    return r;
}

int main(int argc, char **argv)
{
    int r = 0;

    for (int i = 1; i < argc; i++)
        r |= run_path(argv[i]);
    printf("%zu inputs\n", n_inputs);
    return r || n_inputs == 0;
}
