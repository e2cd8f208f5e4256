/* Read small files, such as those in /proc, and links behind them: what is in them, or where they point, each behind the one
 * before it.
 *
 * paths: of all, each with a zero byte behind it.
 * lengths[i]: of its content, or negative errno; ENOBUFS: there was no room left for it. */
void crd_files_read(const char *paths, size_t n_files, size_t n_links, char *room, size_t size, int64_t *lengths);
