/* Where a stream is read from: fd, which can be polled. If fd is a pipe, what is in it is moved into the pipe between
 * pipe_in and pipe_out first (-1: it is none), where moved bytes of it are. */
struct crd_stream {
    int fd, stop_fd, pipe_in, pipe_out;
    size_t moved;
};

/* Fills a buffer, unless the stream ends, or stop_fd can be read while there is nothing to read from fd, before. */
int crd_stream_read(struct crd_stream *stream, void *buffer, size_t length, size_t *filled_ret, struct crd_error *err);
