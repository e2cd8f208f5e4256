/* The allocator of the C library: mallopt(3). */
int mallopt(int parameter, int value);
