/* A stream out of a pipe, many reads in one call. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "core.h"

enum { PIPE_BYTES = 1 << 20 };

/* Waits for something to read; 0: we are to stop, -1: poll failed. */
static int await(const struct crd_stream *stream)
{
    struct pollfd polled[] = {{stream->fd, POLLIN, 0}, {stream->stop_fd, POLLIN, 0}};
    int n;

    do
        n = poll(polled, 2, -1);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -1 : !polled[1].revents;
}

/* Reads what is there; 0: the stream has ended, or we are to stop. */
static ssize_t read_some(struct crd_stream *stream, void *buffer, size_t length)
{
    ssize_t n;

    while (!stream->moved) {
        int ready = await(stream);
        if (ready <= 0)
            return ready;
        n = stream->pipe_in < 0 ? read(stream->fd, buffer, length)
                                : splice(stream->fd, NULL, stream->pipe_in, NULL, PIPE_BYTES, SPLICE_F_NONBLOCK);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0 || stream->pipe_in < 0)
            return n;
        stream->moved = n;
    }
    n = read(stream->pipe_out, buffer, length);
    if (n > 0)
        stream->moved -= n;
    return n;
}

int crd_stream_read(struct crd_stream *stream, void *buffer, size_t length, size_t *filled_ret, struct crd_error *err)
{
    size_t filled = 0;

    while (filled < length) {
        ssize_t n = read_some(stream, (char *)buffer + filled, length - filled);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return crd_fail(err, "read a stream", 0, 0);
        }
        if (!n)
            break;
        filled += n;
    }
    *filled_ret = filled;
    return 0;
}
