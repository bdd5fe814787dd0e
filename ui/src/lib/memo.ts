// Components that render again only when a property changed (by identity). Signals read inside still update them.
import { Component, type ComponentChildren, type ComponentType, h } from "preact";

export function memo<P extends object>(Inner: (props: P) => ComponentChildren): ComponentType<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const before = this.props as Record<string, unknown>;
      const after = next as Record<string, unknown>;
      for (const key in after) if (key !== "children" && before[key] !== after[key]) return true;
      for (const key in before) if (!(key in after)) return true;
      return false;
    }

    override render(props: P) {
      return h(Inner as ComponentType<P>, props);
    }
  };
}
