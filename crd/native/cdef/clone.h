/* clone3 into a child that runs nothing but execveat(vessel_fd): a process with an empty memory map but for vessel, stack
 * and vdso, and an empty environment. All its signals are blocked; SIGKILL is its parent-death signal. pid 0: the kernel
 * chooses. */
int crd_vessel_spawn(int vessel_fd, int pid, int *pid_ret, struct crd_error *err);
