"""An action from another package: `action=count` prints the number of slots that the job would use."""

from flagscale.plan.prepare import Request, prepare


def count(request: Request) -> int:
    """Check the configuration and print the number of slots; mistakes are reported with exit code 2."""
    plan = prepare(request, run_id="count").plan
    print(f"{plan.world_size} slots on {len(plan.hosts)} host")
    return 0
