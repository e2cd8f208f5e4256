#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

/* What fills the room may have been cut off. */
static ssize_t whole(ssize_t length, size_t size)
{
    if (length < (ssize_t)size)
        return length;
    errno = ENOBUFS;
    return -1;
}

static ssize_t read_text(int fd, char *room, size_t size)
{
    size_t length = 0;
    ssize_t found;

    /* A file that is made as it is read ends with an empty read, and not with a short one. */
    while ((found = read(fd, room + length, size - length)) > 0)
        length += (size_t)found;
    return found < 0 ? -1 : whole((ssize_t)length, size);
}

static ssize_t read_file(const char *path, char *room, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return -1;
    ssize_t length = read_text(fd, room, size);
    int error = errno;
    close(fd);
    errno = error;
    return length;
}

void crd_files_read(const char *paths, size_t n_files, size_t n_links, char *room, size_t size, int64_t *lengths)
{
    for (size_t i = 0; i < n_files + n_links; i++, paths += strlen(paths) + 1) {
        ssize_t length = i < n_files ? read_file(paths, room, size) : whole(readlink(paths, room, size), size);

        lengths[i] = length < 0 ? -errno : length;
        if (length > 0) {
            room += length;
            size -= (size_t)length;
        }
    }
}
