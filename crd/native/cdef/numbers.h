/* Numbers of pages: the place of a pack in a list << 32, and the page's in the pack. */

/* Add to counts[i] how many have place i. Places are below n_places, or -1 is returned. */
int crd_places_count(const uint64_t *numbers, size_t n, uint64_t *counts, size_t n_places, struct crd_error *err);

/* Give each another place; as before. */
int crd_places_replace(uint64_t *numbers, size_t n, const uint32_t *places, size_t n_places, struct crd_error *err);

/* Numbers to the signed difference, less one, from the one before, and back. */
void crd_numbers_to_differences(uint64_t *numbers, size_t n);
void crd_numbers_from_differences(uint64_t *numbers, size_t n);
